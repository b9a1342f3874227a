-- Takes Stint out of this database: ends every lease, and drops their roles,
-- the groups and the schema stint. {ceiling} and {broker} are dropped unless
-- something, such as another database, still needs them.

BEGIN;
SET LOCAL search_path = pg_catalog, pg_temp;
DO $do$
DECLARE
	v_policy text;
	v_lease text;
BEGIN
	SELECT string_agg(format('%I on %s', p.polname, p.polrelid::regclass), ', ') INTO v_policy
	FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_policy p ON p.oid = d.objid
	WHERE d.classid = 'pg_policy'::regclass AND d.refclassid = 'pg_proc'::regclass
		AND d.refobjid IN ('stint.sub()'::regprocedure, 'stint.rows(regclass, text)'::regprocedure);
	IF v_policy IS NOT NULL THEN
		RAISE EXCEPTION 'row policies ask stint, drop or change them first: %', v_policy;
	END IF;
	FOR v_lease IN SELECT lease FROM stint.list() LOOP
		PERFORM stint.revoke(v_lease);
	END LOOP;
END
$do$;
COMMIT;

BEGIN;
SET LOCAL search_path = pg_catalog, pg_temp;
DO $do$
DECLARE v_lease text;
BEGIN
	FOR v_lease IN SELECT lease FROM stint.list() LOOP
		IF stint.reap(v_lease) = 'retry' THEN
			RAISE EXCEPTION 'lease % has sessions that do not end; try again', v_lease;
		END IF;
	END LOOP;
	PERFORM stint.tidy(interval '0');
	IF EXISTS (SELECT FROM stint.grp) THEN
		RAISE EXCEPTION 'some group roles could not be dropped; try again';
	END IF;
	PERFORM stint.strays();
END
$do$;
DROP SCHEMA stint CASCADE;
DO $do$
DECLARE
	v_role name;
	v_what text;
BEGIN
	FOREACH v_role IN ARRAY ARRAY[{'broker'}, {'ceiling'}]::name[] LOOP
		IF NOT pg_has_role(current_user, v_role, 'USAGE') THEN -- who drops what a role was granted has to have its privileges
			EXECUTE format('GRANT %I TO %I', v_role, current_user);
		END IF;
		IF EXISTS (SELECT FROM pg_shdepend d JOIN pg_roles r ON r.oid = d.refobjid
			WHERE d.refclassid = 'pg_authid'::regclass AND r.rolname = v_role
				AND d.dbid NOT IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))) THEN
			-- DROP OWNED would take the memberships that the role granted as well, from
			-- PostgreSQL 16 on: those of the leases in other databases.
			FOR v_what IN SELECT DISTINCT CASE
					WHEN d.classid = 'pg_class'::regclass THEN (SELECT CASE c.relkind WHEN 'S' THEN 'SEQUENCE ' ELSE 'TABLE ' END FROM pg_class c WHERE c.oid = d.objid) || d.objid::regclass
					WHEN d.classid = 'pg_proc'::regclass THEN 'ROUTINE ' || d.objid::regprocedure
					WHEN d.classid = 'pg_namespace'::regclass THEN 'SCHEMA ' || d.objid::regnamespace
					WHEN d.classid = 'pg_database'::regclass THEN format('DATABASE %I', current_database()) END
				FROM pg_shdepend d JOIN pg_roles r ON r.oid = d.refobjid JOIN pg_database b ON b.datname = current_database()
				WHERE d.refclassid = 'pg_authid'::regclass AND r.rolname = v_role AND d.deptype = 'a' AND (d.dbid = b.oid OR d.classid = 'pg_database'::regclass AND d.objid = b.oid)
			LOOP
				CONTINUE WHEN v_what IS NULL;
				EXECUTE format('REVOKE ALL ON %s FROM %I CASCADE', v_what, v_role);
			END LOOP;
			RAISE NOTICE 'role % is still needed elsewhere', v_role;
			CONTINUE;
		END IF;
		EXECUTE format('DROP OWNED BY %I', v_role);
		BEGIN
			EXECUTE format('DROP ROLE %I', v_role);
		EXCEPTION WHEN dependent_objects_still_exist THEN
			RAISE NOTICE 'role % is still needed elsewhere', v_role;
		END;
	END LOOP;
END
$do$;
COMMIT;
