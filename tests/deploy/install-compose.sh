#!/bin/sh
# Install Docker Compose 2 on Debian, as root. Bookworm's own is version 1: there the package of the release after it is
# taken, which asks for no newer libraries, from the mirror this machine already uses and under the same signatures.
set -eu
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
mkdir -p "$room/lists/partial" "$room/archives/partial"
mirror=$(apt-get indextargets --format '$(REPO_URI) $(ORIGIN) $(CODENAME)' 'Created-By: Packages' |
  awk '$2 == "Debian" && $3 !~ /-/ {print $1; exit}')
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" >"$room/sources.list"
apt() {
  apt-get -qq -o Dir::Etc::SourceList="$room/sources.list" -o Dir::Etc::SourceParts=- -o Dir::State::Lists="$room/lists" \
    -o Dir::Cache="$room" -o APT::Sandbox::User=root -o Acquire::Retries=3 "$@"
}
apt update
cd "$room"
apt download docker-compose
dpkg --install docker-compose_*.deb || { dpkg --remove docker-compose; exit 1; }
