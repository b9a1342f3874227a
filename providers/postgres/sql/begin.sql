-- Stint's part of a PostgreSQL database, version {version}. To be run once in each
-- database, and again after an update of Stint, by a superuser, or by a role with
-- CREATEROLE that may create schemas here. It changes nothing but the schema
-- stint and the two roles that it names, and what these have.
--
-- {ceiling} owns the functions. It cannot log in; it has CREATEROLE, because it
-- makes roles, and pg_signal_backend, because it ends their sessions. What it is
-- granted WITH GRANT OPTION is the most that is ever handed out:
--
--   GRANT USAGE ON SCHEMA app TO {ceiling} WITH GRANT OPTION;
--   GRANT SELECT ON app.orders TO {ceiling} WITH GRANT OPTION;
--
-- and REVOKE ... CASCADE takes it from whoever has it by then. {broker} is what
-- Stint logs in as. It may call the functions, and nothing else.
--
-- A lease has what PUBLIC has as well, and a mint is refused where that is more
-- than its grant. Roles are of the whole cluster, so that other databases count:
--
--   REVOKE CONNECT, TEMPORARY ON DATABASE ... FROM PUBLIC;
--
-- Where that is done in this database, both roles are granted CONNECT, and the
-- ceiling passes it on to the leases.

BEGIN;
-- Before anything is called: who may create in a schema of the search path could
-- else have a superuser call functions of his, by names that are the catalogue's.
SET LOCAL search_path = pg_catalog, pg_temp;

DO $do$
BEGIN
	IF current_setting('server_version_num')::int < 150000 THEN
		RAISE EXCEPTION 'PostgreSQL 15 or newer is wanted, this is %', current_setting('server_version');
	END IF;
	IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = {'ceiling'}) THEN
		CREATE ROLE {ceiling} NOLOGIN CREATEROLE;
	END IF;
	IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = {'broker'}) THEN
		CREATE ROLE {broker} LOGIN;
	END IF;
	IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = {'ceiling'}
		AND (rolsuper OR rolcanlogin OR rolbypassrls OR rolreplication OR NOT rolcreaterole OR NOT rolinherit)) THEN
		RAISE EXCEPTION '% has to be NOLOGIN CREATEROLE INHERIT, and no more', {'ceiling'};
	END IF;
	IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = {'broker'} AND (rolsuper OR rolcreaterole OR rolbypassrls OR rolreplication))
		OR pg_has_role({'broker'}, {'ceiling'}, 'MEMBER') THEN
		RAISE EXCEPTION '% must be neither superuser, CREATEROLE, BYPASSRLS nor REPLICATION, nor a member of %', {'broker'}, {'ceiling'};
	END IF;
	IF NOT pg_has_role({'ceiling'}, 'pg_signal_backend', 'USAGE') THEN
		GRANT pg_signal_backend TO {ceiling};
	END IF;
	-- A superuser is a member of every role. From PostgreSQL 16 on who made a role is
	-- a member as well, and cannot become it.
	IF NOT pg_has_role(current_user, {'ceiling'}, CASE WHEN current_setting('server_version_num')::int < 160000 THEN 'MEMBER' ELSE 'SET' END) THEN
		EXECUTE format('GRANT %I TO %I', {'ceiling'}, current_user);
	END IF;
	IF NOT has_database_privilege('public', current_database(), 'CONNECT') THEN
		EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), {'broker'});
		EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I WITH GRANT OPTION', current_database(), {'ceiling'});
	END IF;
	IF NOT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = 'stint') THEN
		CREATE SCHEMA stint AUTHORIZATION {ceiling};
	ELSIF NOT EXISTS (SELECT FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_roles r ON r.oid = n.nspowner
		WHERE n.nspname = 'stint' AND r.rolname = {'ceiling'}) THEN
		RAISE EXCEPTION 'there is a schema stint, and it is not %''s', {'ceiling'};
	END IF;
END
$do$;

SET LOCAL ROLE {ceiling};
CREATE TABLE IF NOT EXISTS stint.migration (version integer PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp());

DO $do$
BEGIN
	IF (SELECT max(version) FROM stint.migration) > {version} THEN
		RAISE EXCEPTION 'version % is installed, which is newer than this one, {version}', (SELECT max(version) FROM stint.migration);
	END IF;
END
$do$;
