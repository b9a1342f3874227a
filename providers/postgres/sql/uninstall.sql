-- Takes Stint out of this database: ends every lease, and drops their roles,
-- the groups and the schema stint. {ceiling} and {broker} are dropped unless
-- something, such as another database, still needs them.

BEGIN;
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
DECLARE v_role name;
BEGIN
	FOREACH v_role IN ARRAY ARRAY[{'broker'}, {'ceiling'}]::name[] LOOP
		IF NOT pg_has_role(current_user, v_role, 'MEMBER') THEN -- who drops what a role was granted has to be a member
			EXECUTE format('GRANT %I TO %I', v_role, current_user);
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
