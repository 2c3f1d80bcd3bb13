-- What both scripts begin with: the log as it stands, made if there is none.
--
-- KEYS: the stream, and the hash with what is known of it. ARGV[1]: an epoch for a new log.
--
-- Each record is an entry of the stream with its offset as the first part of the id. Its field `r`
-- is the record as we store it, `p` links it to the one before: epoch, tag, offset; and its own offset,
-- so that a copy is none of ours.
local stream, log = KEYS[1], KEYS[2]

-- Numbers above are not exact in Lua.
local LAST = 2 ^ 53 - 2 ^ 20

local epoch, base, last, tag

local function number(value)
    return string.format('%.0f', value)
end

-- The first part of the last id that the stream has had.
local function top()
    local info = redis.call('XINFO', 'STREAM', stream)
    for i = 1, #info, 2 do
        if info[i] == 'last-generated-id' then
            return tonumber(string.match(info[i + 1], '^%d+'))
        end
    end
end

-- A new log. Entries that are there already are not its own; its offsets go on after them.
local function begin()
    base = 0
    if redis.call('EXISTS', stream) == 1 then
        base = top()
        if base >= LAST then
            -- Somebody has left no room for any further id.
            redis.call('DEL', stream)
            base = 0
        end
    end
    epoch, last, tag = ARGV[1], base, '\0\0\0\0'
    redis.call('DEL', log)
    redis.call('HSET', log, 'epoch', epoch, 'base', number(base), 'last', number(last), 'tag', tag)
end

-- Gives the value of one more field of the hash.
local function open(field)
    local found = redis.call('HMGET', log, 'epoch', 'base', 'last', 'tag', field)
    epoch, base, last, tag = found[1], tonumber(found[2] or ''), tonumber(found[3] or ''), found[4]
    if epoch and base and last and tag then
        return found[5]
    end
    begin()
    return false
end
