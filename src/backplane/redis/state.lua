-- Gives the log as it stands: epoch, base, last, tag.
open('')
-- A key that is no stream fails here.
local count = redis.call('XLEN', stream)
if count == 0 and last ~= base and redis.call('EXISTS', stream) == 0 then
    -- The stream is gone with all that was in it.
    begin()
end
return { epoch, number(base), number(last), tag }
