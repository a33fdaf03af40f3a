-- Takes from the meters KEYS, all or none: meter.Apply in Lua. ARGV: now in
-- microseconds and in milliseconds, the skew in milliseconds, "1" to change
-- nothing; then of each meter: kind (0 rate, 1 quota, 2 distinct), add, most,
-- start in milliseconds, member, "1" for a hard one, milliseconds to keep it.
-- Answers whether it was taken, then of each meter: over, used, and for a rate
-- the wait in microseconds.
local now, nowms, skew, peek = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local taken, answer, next = 1, {1}, {}
for i = 1, #KEYS do
  local a = 4 + (i - 1) * 7
  local kind, add, most, start = ARGV[a + 1], tonumber(ARGV[a + 2]), tonumber(ARGV[a + 3]), tonumber(ARGV[a + 4])
  local old = redis.call('GET', KEYS[i]) or ''
  local over, used, wait = 0, 0, 0
  if kind == '0' then
    local tat = math.min(math.max(tonumber(old) or 0, now), now + most)
    local after = math.max(tat + add, now)
    if add > 0 and after - now > most then
      over, used, wait = 1, tat - now, after - now - most
    else
      used = after - now
      next[i] = string.format('%.0f', after)
    end
  else
    local first, held = string.match(old, '^(%-?%d+):(.*)$')
    local stored = tonumber(first)
    if stored and (stored == start or stored > start and stored <= nowms + skew) then
      start = stored
    else
      held = ''
    end
    if kind == '1' then
      local n = tonumber(held) or 0
      local after = math.max(n + add, 0)
      if add > 0 and after > most then
        over, used = 1, n
      else
        used = after
        next[i] = string.format('%.0f:%.0f', start, after)
      end
    else
      local member, found = ARGV[a + 5], false
      if #held % 8 ~= 0 then
        held = ''
      end
      used = #held / 8
      for p = 1, #held, 8 do
        if string.sub(held, p, p + 7) == member then
          found = true
          break
        end
      end
      if not found then
        if used >= most then
          over = 1
        else
          used = used + 1
          next[i] = string.format('%.0f:', start) .. held .. member
        end
      end
    end
  end
  if over == 1 and ARGV[a + 6] == '1' then
    taken = 0
  end
  answer[#answer + 1] = over
  answer[#answer + 1] = used
  answer[#answer + 1] = wait
end
answer[1] = taken
if taken == 1 and peek ~= '1' then
  for i = 1, #KEYS do
    if next[i] then
      redis.call('SET', KEYS[i], next[i], 'PX', ARGV[4 + i * 7])
    end
  end
end
return answer
