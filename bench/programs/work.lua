-- Lua: tables, closures, strings, floating point.
local function queens(n)
	local found, columns, up, down = 0, {}, {}, {}
	local function place(row)
		if row > n then
			found = found + 1
			return
		end
		for c = 1, n do
			if not (columns[c] or up[row + c] or down[row - c]) then
				columns[c], up[row + c], down[row - c] = true, true, true
				place(row + 1)
				columns[c], up[row + c], down[row - c] = nil, nil, nil
			end
		end
	end
	place(1)
	return found
end

local function strings(n)
	local parts = {}
	for i = 1, n do
		parts[#parts + 1] = string.format("%d:%x", i, i * 31)
	end
	local text, sum = table.concat(parts, ","), 0
	for digits in text:gmatch("(%d+):") do
		sum = sum + tonumber(digits)
	end
	return sum, #text
end

local function series(n)
	local sum = 0.0
	for i = 1, n do
		sum = sum + (i % 2 == 0 and -1 or 1) / (2 * i - 1)
	end
	return string.format("%.9f", 4 * sum)
end

print(queens(9), strings(100000), series(5000000))
