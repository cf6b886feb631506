#!/usr/bin/env bash
# Rolling update of the replicas of docker-compose.yml, without a failed request: one more replica of the present image and
# settings, then an old one less, until no old one is left.
#
#   deploy/roll.sh [SERVICE ...]        default: stepdial; with GPUs: stepdial gpu1 ...
#
# A replica that is told to end says so on /readyz and finishes what it accepted; what it refuses meanwhile the balancer
# sends elsewhere. If a new replica does not become ready, it is removed and the rest goes on serving: nothing was taken away.
#   READY_SECONDS=900   how long a new replica may take to be ready
#   COMPOSE="docker compose"   how Compose is called, with its -f and -p
set -euo pipefail
cd "$(dirname "$0")/.."
compose=(${COMPOSE:-docker compose})
ready_seconds=${READY_SECONDS:-900}

say() { echo "$(date +%T) $*"; }

# what the balancer says of itself and of its replicas
metrics() {
  "${compose[@]}" exec -T balancer sh -c 'wget -qO- http://127.0.0.1:8404/metrics 2>/dev/null || curl -fs http://127.0.0.1:8404/metrics'
}

# replicas that the balancer sends requests to
serving() { metrics | sed -n 's/^haproxy_backend_active_servers{proxy="stepdial"} //p'; }

# whether each slot that the balancer has for replicas is taken; those that nobody has are in maintenance
full() {
  local slots
  slots=$(metrics | grep '^haproxy_server_status{proxy="stepdial"') && ! grep --quiet 'state="MAINT"} 1' <<<"$slots"
}

# wait_until SECONDS COMMAND...
wait_until() {
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    [ $SECONDS -lt $end ] || return 1
    sleep 1
  done
}

healthy() { [ "$(docker inspect --format '{{.State.Health.Status}}' "$1")" = healthy ]; }
# Docker starts a container again that ended: this one was refused, and will be again
ended() { [ "$(docker inspect --format '{{.RestartCount}}' "$1")" -gt 0 ]; }
healthy_or_ended() { healthy "$1" || ended "$1"; }
serving_is() { [ "$(serving)" "$1" "$2" ]; }

replace() { # SERVICE OLD, one container by another
  local service=$1 old=$2 before new count said
  before=$("${compose[@]}" ps --quiet "$service")
  count=$(wc -w <<<"$before")
  local up
  up=$(serving)
  if ! said=$("${compose[@]}" up --detach --no-deps --no-recreate --no-build --scale "$service=$((count + 1))" "$service" 2>&1) ||
    ! new=$("${compose[@]}" ps --quiet "$service" | grep --invert-match --fixed-strings "$before"); then
    echo "$said" >&2
    say "$service: no new replica could be started; the others go on" >&2
    exit 1
  fi
  say "$service: ${new:0:12} is starting"
  if ! wait_until "$ready_seconds" healthy_or_ended "$new" || ended "$new" || ! wait_until 30 serving_is -gt "$up"; then
    docker logs --tail 5 "$new" >&2
    docker rm --force "$new" >/dev/null
    say "$service: ${new:0:12} did not become ready and is removed; the others go on" >&2
    exit 1
  fi
  say "$service: ${new:0:12} serves, ${old:0:12} finishes what it has"
  docker stop "$old" >/dev/null
  docker rm "$old" >/dev/null
}

if full; then
  echo "the balancer has no slot for one replica more: raise server-template in deploy/haproxy/replicas.cfg and reload it, or take a replica away" >&2
  exit 1
fi
for service in "${@:-stepdial}"; do
  # Compose would start containers that have ended, with their old image, rather than make new ones
  "${compose[@]}" rm --force "$service" >/dev/null 2>&1 || true
  old=$("${compose[@]}" ps --quiet "$service")
  [ -n "$old" ] || { echo "no container of the service $service runs" >&2; exit 1; }
  for container in $old; do
    replace "$service" "$container"
  done
  say "$service: done"
done
