"""What the Redis job store does in one step each: Lua, run by Redis, so that no replica sees half of it.

`jobs` is a stream with one entry per job that has not ended; its consumer group knows which replica has which entry, for
how long it has not been renewed, and how often it was taken. `waiting` ranks the queued jobs by the order of acceptance.
A job is a hash. Everything carries one hash tag, so that a Redis cluster keeps it on one node.
"""

PREFIX = "{stepdial}:"
GROUP = "replicas"
NOBODY = "nobody"
"""Consumer that holds what was handed back."""
HANDED_BACK_MS = 10 * 365 * 86_400_000
"""Idle time given to what was handed back: longer than any lease, so that anyone may take it at once."""

_OWNS = f"""
local function attempts_of_mine(jobs, entry, consumer)
  local found = redis.call('XPENDING', jobs, '{GROUP}', entry, entry, 1)[1]
  return found and found[2] == consumer and found[4]
end
local function leave(jobs, entry)
  redis.call('XACK', jobs, '{GROUP}', entry)
  redis.call('XDEL', jobs, entry)
end
local function hand_back(jobs, waiting, job, id, entry, attempts)
  redis.call('XCLAIM', jobs, '{GROUP}', '{NOBODY}', 0, entry, 'IDLE', {HANDED_BACK_MS}, 'RETRYCOUNT', attempts, 'JUSTID')
  redis.call('HSET', job, 'state', 'queued', 'evaluations', 0, 'attempts', attempts)
  redis.call('ZADD', waiting, redis.call('HGET', job, 'order'), id)
end
"""

ADD = """
-- KEYS: jobs waiting orders job; ARGV: id, accepted, limit, prefix of jobs, idempotency key or ''
-- answers the id of the job that the key stands for, or nothing when the queue is full
local key = ARGV[5]
local earlier = key ~= '' and redis.call('GET', key)
if earlier and redis.call('EXISTS', ARGV[4] .. earlier) == 1 then return earlier end
if redis.call('EXISTS', KEYS[4]) == 1 then return ARGV[1] end  -- a repeat after a lost answer
if redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[3]) then return nil end
local order = redis.call('INCR', KEYS[3])
local entry = redis.call('XADD', KEYS[1], '*', 'id', ARGV[1])
redis.call('ZADD', KEYS[2], order, ARGV[1])
redis.call('HSET', KEYS[4], 'accepted', ARGV[2], 'state', 'queued', 'entry', entry, 'order', order, 'key', key)
if key ~= '' then redis.call('SET', key, ARGV[1]) end
return ARGV[1]
"""

TAKE = (
    _OWNS
    + f"""
-- KEYS: jobs waiting; ARGV: consumer, lease in ms, prefix of jobs
-- first what was handed back or whose replica is dead, then what nobody has had
while true do
  local taken, cursor = nil, '0-0'
  repeat
    local found = redis.call('XAUTOCLAIM', KEYS[1], '{GROUP}', ARGV[1], ARGV[2], cursor, 'COUNT', 1)
    cursor, taken = found[1], found[2][1]
  until taken or cursor == '0-0'
  if not taken then
    local found = redis.call('XREADGROUP', 'GROUP', '{GROUP}', ARGV[1], 'COUNT', 1, 'STREAMS', KEYS[1], '>')
    taken = found and found[1][2][1]
  end
  if not taken then return nil end
  local entry, id = taken[1], taken[2][2]
  local job = ARGV[3] .. id
  redis.call('ZREM', KEYS[2], id)
  if redis.call('EXISTS', job) == 1 then
    local attempts = attempts_of_mine(KEYS[1], entry, ARGV[1])
    redis.call('HSET', job, 'state', 'running', 'evaluations', 0, 'attempts', attempts)
    return {{id, entry}}
  end
  leave(KEYS[1], entry)  -- its hash was deleted or evicted behind our back: there is nothing left to draw
end
"""
)

RENEW = (
    _OWNS
    + f"""
-- KEYS: jobs job; ARGV: entry, consumer, evaluations
if not attempts_of_mine(KEYS[1], ARGV[1], ARGV[2]) then return 0 end
redis.call('XCLAIM', KEYS[1], '{GROUP}', ARGV[2], 0, ARGV[1], 'JUSTID')
redis.call('HSET', KEYS[2], 'evaluations', ARGV[3])
return 1
"""
)

FINISH = (
    _OWNS
    + """
-- KEYS: jobs job images...; ARGV: entry, consumer, state, now, outcome, time to live in ms, files...
if not attempts_of_mine(KEYS[1], ARGV[1], ARGV[2]) then return 0 end
redis.call('HSET', KEYS[2], 'state', ARGV[3], 'ended', ARGV[4], 'outcome', ARGV[5])
redis.call('PEXPIRE', KEYS[2], ARGV[6])
local key = redis.call('HGET', KEYS[2], 'key')
if key ~= '' then redis.call('PEXPIRE', key, ARGV[6]) end
for number = 3, #KEYS do redis.call('SET', KEYS[number], ARGV[number + 4], 'PX', ARGV[6]) end
leave(KEYS[1], ARGV[1])
return 1
"""
)

GIVE_BACK = (
    _OWNS
    + """
-- KEYS: jobs waiting job; ARGV: id, entry, consumer, attempts to take back
local attempts = attempts_of_mine(KEYS[1], ARGV[2], ARGV[3])
if attempts then hand_back(KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[2], attempts - ARGV[4]) end
"""
)

CLOSE = (
    _OWNS
    + f"""
-- KEYS: jobs waiting; ARGV: consumer, prefix of jobs, idle time in ms after which replicas without jobs are forgotten
-- a consumer may go only when it has nothing: what it has would be lost with it
for _, found in ipairs(redis.call('XPENDING', KEYS[1], '{GROUP}', '-', '+', 100000, ARGV[1])) do
  local entry = redis.call('XRANGE', KEYS[1], found[1], found[1])[1]
  local id = entry and entry[2][2]
  if id and redis.call('EXISTS', ARGV[2] .. id) == 1 then
    hand_back(KEYS[1], KEYS[2], ARGV[2] .. id, id, found[1], found[4] - 1)
  else
    leave(KEYS[1], found[1])
  end
end
redis.call('XGROUP', 'DELCONSUMER', KEYS[1], '{GROUP}', ARGV[1])
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], '{GROUP}')) do
  local name, pending, idle = consumer[2], consumer[4], consumer[6]
  if pending == 0 and idle > tonumber(ARGV[3]) then redis.call('XGROUP', 'DELCONSUMER', KEYS[1], '{GROUP}', name) end
end
"""
)

CANCEL = (
    _OWNS
    + """
-- KEYS: jobs waiting job; ARGV: id, now, time to live in ms
local state, entry, key = unpack(redis.call('HMGET', KEYS[3], 'state', 'entry', 'key'))
if state ~= 'queued' and state ~= 'running' then return end
redis.call('HSET', KEYS[3], 'state', 'cancelled', 'ended', ARGV[2])
redis.call('PEXPIRE', KEYS[3], ARGV[3])
if key ~= '' then redis.call('PEXPIRE', key, ARGV[3]) end
redis.call('ZREM', KEYS[2], ARGV[1])
leave(KEYS[1], entry)
"""
)

MAKE_GROUP = f"""
-- KEYS: jobs. From the stream's first entry on; where another replica was faster there is nothing to do
redis.pcall('XGROUP', 'CREATE', KEYS[1], '{GROUP}', '0', 'MKSTREAM')
"""
