CREATE TABLE person (id INTEGER PRIMARY KEY, name TEXT, town INTEGER);
CREATE TABLE town (id INTEGER PRIMARY KEY, name TEXT, size INTEGER);
BEGIN;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 150000)
	INSERT INTO person SELECT i, 'p' || (i * 7919 % 150001), i * 31 % 500 FROM n;
WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 499)
	INSERT INTO town SELECT i, 'town ' || i, i * i % 9973 FROM n;
COMMIT;
CREATE INDEX by_name ON person(name);
SELECT count(*), sum(t.size), min(p.name), max(p.name) FROM person p JOIN town t ON p.town = t.id WHERE t.size > 3000;
SELECT t.name, count(*) FROM person p JOIN town t ON p.town = t.id WHERE p.name LIKE 'p1%' GROUP BY t.id
	ORDER BY count(*) DESC, t.name LIMIT 5;
SELECT count(*) FROM person a JOIN person b ON a.name = b.name;
