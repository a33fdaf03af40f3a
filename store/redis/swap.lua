-- Puts ARGV[2] in the place of ARGV[1], "" for none, if that is what is there;
-- ARGV[3] is how long to keep it, in milliseconds.
local now = redis.call('GET', KEYS[1]) or ''
if now ~= ARGV[1] then
  return 0
end
if ARGV[2] == '' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
end
return 1
