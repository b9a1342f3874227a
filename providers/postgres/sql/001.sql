-- Version 1. Never edited once it has been released: what changes is a new file.

-- What the database itself insists on, whatever it is asked. A DBA may update
-- the one row.
CREATE TABLE stint.setting (
	one boolean PRIMARY KEY DEFAULT true CHECK (one),
	max_ttl interval NOT NULL DEFAULT '1 hour' CHECK (max_ttl > interval '0'),
	max_connections integer NOT NULL DEFAULT 16 CHECK (max_connections > 0)
);
INSERT INTO stint.setting DEFAULT VALUES;

-- One row a group role: a role without login that has the privileges of exactly
-- one grant, on exactly the tables that its names meant when it was made.
CREATE TABLE stint.grp (
	name name PRIMARY KEY,
	terms text NOT NULL,
	made_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- What the group was made to have. columns: NULL is the whole table.
CREATE TABLE stint.item (
	grp name NOT NULL REFERENCES stint.grp ON DELETE CASCADE,
	rel oid NOT NULL,
	privilege text NOT NULL,
	columns name[],
	rows text NOT NULL,
	PRIMARY KEY (grp, rel, privilege)
);

-- One row a lease. It outlives its role by a day, so that a mint which comes
-- after its own revocation finds that it has ended, and so that a session which
-- outlived its role can be told from others.
CREATE TABLE stint.lease (
	id text PRIMARY KEY,
	role_name name NOT NULL UNIQUE,
	role oid,
	grp name REFERENCES stint.grp ON DELETE SET NULL,
	subject text,
	made_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	not_after timestamptz,
	revoked_at timestamptz,
	dropped_at timestamptz
);
CREATE INDEX lease_grp ON stint.lease (grp) WHERE grp IS NOT NULL;
CREATE INDEX lease_dropped ON stint.lease (dropped_at);
CREATE INDEX lease_open ON stint.lease (id) WHERE dropped_at IS NULL;

-- Who a subject (ISSUER#SUB) is in this database. Only a DBA writes here.
CREATE TABLE stint.subject_role (
	subject text PRIMARY KEY,
	role name NOT NULL
);
