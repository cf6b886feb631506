"""What the Redis job store does in one step each: Lua, run by Redis, so that no replica sees half of it.

`jobs:EDITION` is a stream with one entry per job of that edition that has not ended; its consumer group knows which replica
has which entry, for how long it has not been renewed, and how often it was taken. A replica reads the streams of the
editions it serves and no others. `editions` says when a living replica last served each. `waiting` ranks the queued jobs
by the order of acceptance. A job is a hash. `heard` says when a replica last renewed anything, and while `resting` is there
nothing is taken from those who do not. Everything carries one hash tag, so that a Redis cluster keeps it on one node;
therefore scripts may build the names of keys, and are given one only to find the node.
"""

PREFIX = "{stepdial}:"
WAITING = PREFIX + "waiting"
GROUP = "replicas"
NOBODY = "nobody"
"""Consumer that holds what anyone may take at once: what was handed back, and what dead replicas had."""
LATER = "later"
"""Consumer that holds what is to rest for a lease before anyone takes it."""
FORGET_MS = 86_400_000
"""Idle time after which a replica without jobs is forgotten, and an edition that nobody serves and no job waits for."""

_WORDS = f"""
local WAITING, EDITIONS, ORDERS = '{WAITING}', '{PREFIX}editions', '{PREFIX}orders'
local function jobs_of(edition) return '{PREFIX}jobs:' .. edition end
local function job_of(id) return '{PREFIX}job:' .. id end
local function now()
  local clock = redis.call('TIME')
  return clock[1] + clock[2] / 1e6
end
local function rests(lease)
  -- after a silence, be it Redis's own, every lease looks overdue though its holder lives; one lease on, the living have renewed
  local last = redis.call('GET', '{PREFIX}heard')
  if not last or 2000 * (now() - last) > lease then redis.call('SET', '{PREFIX}resting', 1, 'PX', math.ceil(lease)) end
  redis.call('SET', '{PREFIX}heard', now(), 'PX', {FORGET_MS})
  return redis.call('EXISTS', '{PREFIX}resting') == 1
end
local function attempts_of_mine(edition, entry, consumer)
  local pending = redis.pcall('XPENDING', jobs_of(edition), '{GROUP}', entry, entry, 1)
  local found = pending[1]  -- an error has none: the stream is gone, and whatever it held with it
  return found and found[2] == consumer and found[4]
end
local function leave(edition, entry)
  redis.call('XACK', jobs_of(edition), '{GROUP}', entry)
  redis.call('XDEL', jobs_of(edition), entry)
end
local function attempts_unless_gone(id, edition, entry, consumer)
  local attempts = attempts_of_mine(edition, entry, consumer)
  if not attempts or redis.call('EXISTS', job_of(id)) == 1 then return attempts end
  leave(edition, entry)  -- its hash was deleted or evicted behind our back: nobody can be told of it
end
local function hand_back(edition, id, entry, attempts, to)
  redis.call('XCLAIM', jobs_of(edition), '{GROUP}', to, 0, entry, 'RETRYCOUNT', attempts, 'JUSTID')
  redis.call('HSET', job_of(id), 'state', 'queued', 'evaluations', 0, 'attempts', attempts)
  redis.call('ZADD', WAITING, redis.call('HGET', job_of(id), 'order'), id)
end
local function undo(edition, found)  -- an entry of XPENDING that was taken, as if it never had been
  local entry = redis.call('XRANGE', jobs_of(edition), found[1], found[1])[1]
  local id = entry and entry[2][2]
  if id and redis.call('EXISTS', job_of(id)) == 1 then
    hand_back(edition, id, found[1], found[4] - 1, '{NOBODY}')
  else
    leave(edition, found[1])
  end
end
local function conclude(id, ttl, ...)
  redis.call('HSET', job_of(id), ...)
  redis.call('PEXPIRE', job_of(id), ttl)
  redis.call('ZREM', WAITING, id)
  local key = redis.call('HGET', job_of(id), 'key')
  if key ~= '' then redis.call('PEXPIRE', key, ttl) end
end
"""

ADD = (
    _WORDS
    + """
-- ARGV: id, accepted, limit, idempotency key or '', edition
-- answers the id of the job that the key stands for, or nothing when the queue is full
local id, key, edition = ARGV[1], ARGV[4], ARGV[5]
local earlier = key ~= '' and redis.call('GET', key)
if earlier and redis.call('EXISTS', job_of(earlier)) == 1 then return earlier end
if redis.call('EXISTS', job_of(id)) == 1 then return id end  -- a repeat after a lost answer
local backlog = 0
for _, known in ipairs(redis.call('ZRANGE', EDITIONS, 0, -1)) do backlog = backlog + redis.call('XLEN', jobs_of(known)) end
if backlog >= tonumber(ARGV[3]) then return nil end
redis.call('ZADD', EDITIONS, now(), edition)
local order = redis.call('INCR', ORDERS)
local entry = redis.call('XADD', jobs_of(edition), '*', 'id', id)
redis.call('ZADD', WAITING, order, id)
redis.call('HSET', job_of(id), 'accepted', ARGV[2], 'state', 'queued', 'order', order, 'key', key)
redis.call('HSET', job_of(id), 'entry', entry, 'edition', edition)
if key ~= '' then redis.call('SET', key, id) end
return id
"""
)

TAKE = (
    _WORDS
    + f"""
-- ARGV: consumer, lease in ms, editions...
-- first what was handed back or whose replica is dead, then what nobody has had, the oldest of all editions; it costs the
-- same however many jobs run, but for a look every quarter of a lease, by whichever replica comes by, at who is dead
local function sweep(edition, lease)
  local mark = '{PREFIX}swept:' .. edition
  if not redis.call('SET', mark, 1, 'NX', 'PX', math.ceil(lease / 4)) or rests(lease) then return end
  local cursor = '0-0'
  repeat
    local found = redis.call('XAUTOCLAIM', jobs_of(edition), '{GROUP}', '{NOBODY}', lease, cursor, 'COUNT', 100, 'JUSTID')
    cursor = found[1]
  until cursor == '0-0'
end
local function first_of(edition)
  local back = redis.call('XPENDING', jobs_of(edition), '{GROUP}', '-', '+', 1, '{NOBODY}')[1]
  if back then return back[1], 1 end
  local last = redis.call('XINFO', 'GROUPS', jobs_of(edition))[1][8]
  local unseen = redis.call('XRANGE', jobs_of(edition), '(' .. last, '+', 'COUNT', 1)[1]
  return unseen and unseen[1], 2
end
local function is_before(one, other)
  if one.rank ~= other.rank then return one.rank < other.rank end
  local ms, place = string.match(one.entry, '(%d+)-(%d+)')
  local other_ms, other_place = string.match(other.entry, '(%d+)-(%d+)')
  if ms ~= other_ms then return tonumber(ms) < tonumber(other_ms) end
  return tonumber(place) < tonumber(other_place)
end
local function have(first)
  local jobs = jobs_of(first.edition)
  if first.rank == 1 then return redis.call('XCLAIM', jobs, '{GROUP}', ARGV[1], 0, first.entry)[1] end
  return redis.call('XREADGROUP', 'GROUP', '{GROUP}', ARGV[1], 'COUNT', 1, 'STREAMS', jobs, '>')[1][2][1]
end
for number = 3, #ARGV do sweep(ARGV[number], tonumber(ARGV[2])) end
while true do
  local first
  for number = 3, #ARGV do
    local entry, rank = first_of(ARGV[number])
    local found = entry and {{edition = ARGV[number], entry = entry, rank = rank}}
    if found and (not first or is_before(found, first)) then first = found end
  end
  if not first then return nil end
  local id = have(first)[2][2]
  redis.call('ZREM', WAITING, id)
  if redis.call('EXISTS', job_of(id)) == 1 then
    local attempts = attempts_of_mine(first.edition, first.entry, ARGV[1])
    redis.call('HSET', job_of(id), 'state', 'running', 'evaluations', 0, 'attempts', attempts)
    return {{id, first.edition, first.entry}}
  end
  leave(first.edition, first.entry)  -- its hash was deleted or evicted behind our back: there is nothing left to draw
end
"""
)

RENEW = (
    _WORDS
    + f"""
-- ARGV: consumer, lease in ms, number of editions, editions..., then id, edition, entry and evaluations of each job
-- answers the ids of the jobs that are no longer the consumer's
local lease, lost, place = tonumber(ARGV[2]), {{}}, 4 + ARGV[3]
rests(lease)
for number = 4, place - 1 do redis.call('ZADD', EDITIONS, now(), ARGV[number]) end
for number = place, #ARGV, 4 do
  local id, edition, entry, evaluations = unpack(ARGV, number, number + 3)
  if attempts_unless_gone(id, edition, entry, ARGV[1]) then
    redis.call('XCLAIM', jobs_of(edition), '{GROUP}', ARGV[1], 0, entry, 'JUSTID')
    redis.call('HSET', job_of(id), 'evaluations', evaluations)
  else
    lost[#lost + 1] = id
  end
end
-- what the consumer has and does not name, it does not know of: it was taken for it, and the answer never arrived
for number = 4, place - 1 do
  local jobs = jobs_of(ARGV[number])
  local unknown = redis.pcall('XPENDING', jobs, '{GROUP}', 'IDLE', math.ceil(lease / 2), '-', '+', 10, ARGV[1])
  for _, found in ipairs(unknown) do undo(ARGV[number], found) end  -- an error has none: nobody has set the stream up
end
return lost
"""
)

FINISH = (
    _WORDS
    + """
-- ARGV: consumer, id, edition, entry, state, now, outcome, time to live in ms, files...
local id, edition, entry, ttl = ARGV[2], ARGV[3], ARGV[4], ARGV[8]
if not attempts_unless_gone(id, edition, entry, ARGV[1]) then
  local by, ended = unpack(redis.call('HMGET', job_of(id), 'by', 'entry'))
  return by == ARGV[1] and ended == entry and 1 or 0  -- a repeat after a lost answer
end
conclude(id, ttl, 'state', ARGV[5], 'ended', ARGV[6], 'outcome', ARGV[7], 'by', ARGV[1])
for number = 9, #ARGV do redis.call('SET', job_of(id) .. ':image:' .. number - 9, ARGV[number], 'PX', ttl) end
leave(edition, entry)
return 1
"""
)

GIVE_BACK = (
    _WORDS
    + """
-- ARGV: consumer, id, edition, entry, attempts to take back, consumer that is to hold it
local id, edition, entry = ARGV[2], ARGV[3], ARGV[4]
local attempts = attempts_unless_gone(id, edition, entry, ARGV[1])
if attempts then hand_back(edition, id, entry, attempts - ARGV[5], ARGV[6]) end
"""
)

CLOSE = (
    _WORDS
    + f"""
-- ARGV: consumer, editions...
-- a consumer may go only when it has nothing: what it has would be lost with it
for number = 2, #ARGV do
  local edition = ARGV[number]
  local jobs = jobs_of(edition)
  if redis.call('EXISTS', jobs) == 1 then
    for _, found in ipairs(redis.call('XPENDING', jobs, '{GROUP}', '-', '+', 100000, ARGV[1])) do
      undo(edition, found)
    end
    redis.call('XGROUP', 'DELCONSUMER', jobs, '{GROUP}', ARGV[1])
    for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', jobs, '{GROUP}')) do
      local name, pending, idle = consumer[2], consumer[4], consumer[6]
      if pending == 0 and idle > {FORGET_MS} then redis.call('XGROUP', 'DELCONSUMER', jobs, '{GROUP}', name) end
    end
  end
end
"""
)

CANCEL = (
    _WORDS
    + """
-- ARGV: id, now, time to live in ms
-- answers the evaluations done until now, or nothing when it had ended
local id = ARGV[1]
local state, edition, entry, done = unpack(redis.call('HMGET', job_of(id), 'state', 'edition', 'entry', 'evaluations'))
if state ~= 'queued' and state ~= 'running' then return end
conclude(id, ARGV[3], 'state', 'cancelled', 'ended', ARGV[2])
leave(edition, entry)
return tonumber(done or 0)
"""
)

BACKLOG = (
    _WORDS
    + f"""
-- answers edition, jobs that have not ended, and whole milliseconds since a living replica served it, of each edition
local answer = {{}}
for _, edition in ipairs(redis.call('ZRANGE', EDITIONS, 0, -1)) do
  local jobs = redis.call('XLEN', jobs_of(edition))
  local silent_ms = math.floor(1000 * (now() - redis.call('ZSCORE', EDITIONS, edition)))
  if jobs == 0 and silent_ms > {FORGET_MS} then
    redis.call('DEL', jobs_of(edition))
    redis.call('ZREM', EDITIONS, edition)
  else
    answer[#answer + 1] = {{edition, jobs, silent_ms}}
  end
end
return answer
"""
)

ABANDON = (
    _WORDS
    + """
-- ARGV: edition, least time in ms that nobody has served it, now, outcome, time to live in ms
-- answers how many jobs it has ended
local edition, ended = ARGV[1], 0
local served = redis.call('ZSCORE', EDITIONS, edition)
if not served or 1000 * (now() - served) < tonumber(ARGV[2]) then return 0 end
for _, found in ipairs(redis.call('XRANGE', jobs_of(edition), '-', '+')) do
  local id = found[2][2]
  if redis.call('EXISTS', job_of(id)) == 1 then
    conclude(id, ARGV[5], 'state', 'failed', 'ended', ARGV[3], 'outcome', ARGV[4])
    ended = ended + 1
  end
end
redis.call('DEL', jobs_of(edition))
redis.call('ZREM', EDITIONS, edition)
return ended
"""
)

MAKE_GROUPS = (
    _WORDS
    + f"""
-- ARGV: editions. From a stream's first entry on; where another replica was faster there is nothing to do
for _, edition in ipairs(ARGV) do redis.pcall('XGROUP', 'CREATE', jobs_of(edition), '{GROUP}', '0', 'MKSTREAM') end
"""
)
