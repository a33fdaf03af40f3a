-- Takes sides, ARGV, out of the correspondence at KEYS[1]. The value is what
-- greylist.lua writes. Returns how many were taken out.
local v = redis.call('GET', KEYS[1])
if not v then return 0 end
local gone = {}
for _, m in ipairs(ARGV) do gone[m] = true end
local text, at, n, kept = {string.sub(v, 1, 16)}, 17, 0, 0
while at <= #v do
  local from = at
  local _, _, _, m, next = struct.unpack('>dddHc0', v, at)
  at = next
  if gone[m] then
    n = n + 1
  else
    kept = kept + 1
    text[#text + 1] = string.sub(v, from, at - 1)
  end
end
if kept == 0 then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], table.concat(text), 'KEEPTTL')
end
return n
