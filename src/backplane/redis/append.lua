-- Appends a batch of records, in one step, and only once.
--
-- ARGV: see above; the publisher; the number of its batch; how many records are kept; the records.
-- Gives the epoch, the offset of the first record, how many were appended, and why not more.
local publisher, batch, keep = ARGV[2], tonumber(ARGV[3]), ARGV[4]

local done = open(publisher)
if done then
    local was, first, count = string.match(done, '^(%d+) (%d+) (%d+)')
    was = tonumber(was)
    if was == batch then
        return { epoch, first, tonumber(count), '' }
    elseif was > batch then
        -- Given up on by the publisher; it comes late, out of some buffer.
        return { epoch, '0', 0, 'ERR batch is older than the last one' }
    end
end

local function link(id)
    return epoch .. tag .. number(last == base and 0 or last) .. '-' .. number(id)
end

local function add(record)
    local id = last + 1
    local reply = redis.pcall('XADD', stream, 'NOMKSTREAM', 'MAXLEN', '~', keep,
        number(id) .. '-0', 'r', record, 'p', link(id))
    if reply == false then
        if last ~= base then
            -- The stream is gone with all that was in it.
            begin()
            id = last + 1
        end
        reply = redis.pcall('XADD', stream, number(id) .. '-0', 'r', record, 'p', link(id))
    elseif type(reply) == 'table' and reply.err
        and (string.find(reply.err, 'equal or smaller', 1, true)
            or string.find(reply.err, 'exhausted', 1, true)) then
        -- Somebody else has written to the stream: their ids come before ours.
        id = top() + 1
        if id > LAST then
            begin()
            id = last + 1
        end
        reply = redis.pcall('XADD', stream, 'MAXLEN', '~', keep,
            number(id) .. '-0', 'r', record, 'p', link(id))
    end
    if type(reply) == 'table' and reply.err then
        return reply.err
    end
    last, tag = id, string.sub(record, 5, 8)
    return ''
end

local first, count, failure = 0, 0, ''
for i = 5, #ARGV do
    failure = add(ARGV[i])
    if failure ~= '' then
        break
    end
    count = count + 1
    if count == 1 then
        first = last
    end
end

if count > 0 then
    local now = tonumber(redis.call('TIME')[1])
    if not done and redis.call('HLEN', log) > 128 then
        -- Publishers that are gone.
        local fields = redis.call('HGETALL', log)
        for i = 1, #fields, 2 do
            local time = string.match(fields[i + 1], '^%d+ %d+ %d+ (%d+)$')
            if string.sub(fields[i], 1, 2) == 'p:' and time and now - tonumber(time) > 600 then
                redis.call('HDEL', log, fields[i])
            end
        end
    end
    redis.call('HSET', log, 'last', number(last), 'tag', tag,
        publisher, number(batch) .. ' ' .. number(first) .. ' ' .. count .. ' ' .. number(now))
end
return { epoch, number(first), count, failure }
