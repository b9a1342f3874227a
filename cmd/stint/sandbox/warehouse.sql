-- What the sample database holds, and what its DBA lets Stint lend. It is run after
-- `stint postgres install`, which makes the role stint_ceiling.
CREATE SCHEMA sales;
CREATE TABLE sales.orders (id integer PRIMARY KEY, item text NOT NULL, quantity integer NOT NULL, total numeric(8, 2) NOT NULL, day date NOT NULL);
INSERT INTO sales.orders VALUES
	(1, 'green tea', 12, 54.00, '2026-01-05'), (2, 'coffee', 4, 38.00, '2026-01-06'), (3, 'green tea', 6, 27.00, '2026-01-09');
CREATE TABLE sales.customers (id integer PRIMARY KEY, name text NOT NULL, phone text NOT NULL);
INSERT INTO sales.customers VALUES (1, 'Ann Example', '555-0100'), (2, 'Ben Example', '555-0101');
CREATE TABLE sales.salaries (id integer PRIMARY KEY, name text NOT NULL, amount integer NOT NULL);
INSERT INTO sales.salaries VALUES (1, 'Carol', 5000);

-- The most that Stint can ever hand out here, whatever its mappings say: PostgreSQL
-- itself sees to that. sales.salaries is not among it.
GRANT USAGE ON SCHEMA sales TO stint_ceiling WITH GRANT OPTION;
GRANT SELECT ON sales.orders, sales.customers TO stint_ceiling WITH GRANT OPTION;

-- Roles are of the whole cluster: what PUBLIC may do in other databases, a lease may.
REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC;
