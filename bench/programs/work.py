"""Pure Python: integers, lists, dictionaries, strings, objects, generators."""


class Point:
    def __init__(self, x, y):
        self.x, self.y = x, y

    def moved(self, dx, dy):
        return Point(self.x + dx, self.y + dy)


def collatz(limit):
    longest, at = 0, 0
    for start in range(1, limit):
        n, steps = start, 0
        while n != 1:
            n = n // 2 if n % 2 == 0 else 3 * n + 1
            steps += 1
        if steps > longest:
            longest, at = steps, start
    return at, longest


def words(count):
    seen = {}
    for i in range(count):
        word = f"w{i * 7919 % 5003}"
        seen[word] = seen.get(word, 0) + len(word)
    return sum(value for key, value in sorted(seen.items()) if key.endswith("7"))


def walk(steps):
    p = Point(0, 0)
    for i in range(steps):
        p = p.moved(i % 3 - 1, i % 5 - 2)
    return p.x, p.y


print(collatz(25000), words(400000), walk(250000))
