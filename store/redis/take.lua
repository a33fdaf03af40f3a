-- Takes from the meters KEYS, all or none: meter.Apply in Lua. ARGV: the format
-- of the numbers, the numbers in one (it spares the server most of the work),
-- and the members of distinct meters. The numbers: now in microseconds and in
-- milliseconds, the skew in milliseconds, 1 to change nothing; then of each
-- meter: kind (0 rate, 1 quota, 2 distinct), 1 for a hard one, add, most,
-- milliseconds to keep it, and but for a rate start in milliseconds.
-- Answers 1 and of each meter what is used, when no meter was full; else 1 or 0,
-- whether it was taken, and then of each meter: over, used, and for a rate the
-- wait in microseconds. Numbers are written as whole ones by redis.call.
local v, n = {struct.unpack(ARGV[1], ARGV[2])}, #KEYS
local now, peek = v[1], v[4]
local olds, next, answer, keep = redis.call('MGET', unpack(KEYS)), {}, {1}, {}
local over, refused = nil, false
local a, members = 5, 2
for i = 1, n do
  local kind, hard, add, most, old = v[a], v[a + 1], v[a + 2], v[a + 3], olds[i]
  local full, used, wait = false, 0, 0
  keep[i] = v[a + 4]
  if kind == 0 then
    local tat = old and tonumber(old) or 0
    if tat < now or tat > now + 2 * most + v[3] * 1000 then
      tat = now
    elseif tat > now + most then
      tat = now + most
    end
    used = tat + add - now
    if add > 0 and used > most then
      full, used, wait = true, tat - now, used - most
    else
      if used < 0 then
        used = 0
      end
      next[i] = now + used
    end
    a = a + 5
  else
    local start = v[a + 5]
    local first, held = string.match(old or '', '^(%-?%d+):(.*)$')
    local stored = tonumber(first)
    if stored and (stored == start or stored > start and stored <= v[2] + v[3]) then
      start = stored
    else
      held = ''
    end
    if kind == 1 then
      used = tonumber(held) or 0
      local after = math.max(used + add, 0)
      if add > 0 and after > most then
        full = true
      else
        used = after
        next[i] = string.format('%.0f:%.0f', start, after)
      end
    else
      members = members + 1
      local member = ARGV[members]
      if #held % 8 ~= 0 then
        held = ''
      end
      used = #held / 8
      local found = false
      for p = 1, #held, 8 do
        if string.sub(held, p, p + 7) == member then
          found = true
          break
        end
      end
      if not found then
        if used >= most then
          full = true
        else
          used = used + 1
          next[i] = string.format('%.0f:', start) .. held .. member
        end
      end
    end
    a = a + 6
  end
  answer[i + 1] = used
  if full then
    over = over or {}
    over[i] = wait
    refused = refused or hard == 1
  end
end
if not refused and peek ~= 1 then
  for i = 1, n do
    if next[i] then
      redis.call('SET', KEYS[i], next[i], 'PX', keep[i])
    end
  end
end
if not over then
  return answer
end
local all = {refused and 0 or 1}
for i = 1, n do
  all[3 * i - 1], all[3 * i], all[3 * i + 1] = over[i] and 1 or 0, answer[i + 1], over[i] or 0
end
return all
