-- What a lease's role can really do, as the catalogue says, whoever gave it:
-- its group, PUBLIC, or somebody by hand. tables is what a grant can say; beyond
-- is what it cannot, in words.
CREATE FUNCTION stint.attest(p_lease text) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
DECLARE
	v_role oid;
	v_grp name;
	v_tables jsonb;
BEGIN
	SELECT l.role, l.grp INTO v_role, v_grp FROM stint.lease l JOIN pg_roles r ON r.oid = l.role
	WHERE l.id = p_lease AND l.revoked_at IS NULL;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'there is no such lease' USING ERRCODE = 'ST004';
	END IF;
	SELECT coalesce(jsonb_agg(jsonb_build_object('schema', h.schema_name, 'table', h.table_name, 'privilege', h.privilege,
		'columns', coalesce(to_jsonb(h.cols), '"*"'), 'rows', CASE
			WHEN i.rows IS NOT NULL AND i.rows <> '*' AND stint.enforced(h.rel, v_role, h.privilege, i.rows) THEN i.rows
			ELSE '*' END)), '[]')
	INTO v_tables
	FROM stint.effective(v_role) h LEFT JOIN stint.item i ON i.grp = v_grp AND i.rel = h.rel AND i.privilege = h.privilege;
	RETURN jsonb_build_object('tables', v_tables, 'functions', stint.borrowed(v_role), 'beyond', to_jsonb(stint.beyond(v_role, v_grp)));
END
$f$;

-- The privileges of a role on all tables, views and the like outside the system's
-- own schemas. Schemas that the role may not use count as well: whether it may is
-- decided elsewhere, and can change.
CREATE FUNCTION stint.effective(p_role oid)
RETURNS TABLE (rel oid, schema_name name, table_name name, privilege text, cols name[])
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $f$
	WITH version (maintain) AS (
		SELECT current_setting('server_version_num')::int >= 170000 -- a privilege since then
	), seen AS MATERIALIZED (
		SELECT c.oid, n.nspname, c.relname FROM version v, pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname NOT IN ('pg_catalog', 'information_schema')
			AND n.nspname !~ '^pg_(toast|temp)'
			AND (has_table_privilege(p_role, c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER'
					|| CASE WHEN v.maintain THEN ', MAINTAIN' ELSE '' END)
				OR has_any_column_privilege(p_role, c.oid, 'SELECT, INSERT, UPDATE, REFERENCES'))
	), held AS (
		SELECT s.oid, s.nspname, s.relname, p.privilege, has_table_privilege(p_role, s.oid, p.privilege) AS whole,
			CASE WHEN p.columns THEN (SELECT array_agg(a.attname ORDER BY a.attnum) FROM pg_attribute a
				WHERE a.attrelid = s.oid AND NOT a.attisdropped AND has_column_privilege(p_role, s.oid, a.attnum, p.privilege)) END AS cols
		FROM seen s, (VALUES ('SELECT', true), ('INSERT', true), ('UPDATE', true), ('REFERENCES', true),
			('DELETE', false), ('TRUNCATE', false), ('TRIGGER', false)
			UNION ALL SELECT 'MAINTAIN', false FROM version WHERE maintain) AS p (privilege, columns)
	)
	SELECT oid, nspname, relname, privilege, CASE WHEN whole THEN NULL ELSE cols END FROM held WHERE whole OR cols IS NOT NULL
$f$;

-- The functions that a role may call and that run with the rights of another:
-- what they do is not bound by any grant.
CREATE FUNCTION stint.borrowed(p_role oid) RETURNS jsonb
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $f$
	SELECT coalesce(jsonb_agg(jsonb_build_object('schema', n.nspname, 'name', p.proname, 'call', p.oid::regprocedure::text)), '[]')
	FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
	WHERE p.prosecdef AND p.prorettype NOT IN ('trigger'::regtype, 'event_trigger'::regtype)
		AND p.oid NOT IN ('stint.sub()'::regprocedure, 'stint.rows(regclass, text)'::regprocedure)
		AND has_schema_privilege(p_role, n.oid, 'USAGE') AND has_function_privilege(p_role, p.oid, 'EXECUTE')
$f$;

-- What a role can do that no grant of ours says, in words.
CREATE FUNCTION stint.beyond(p_role oid, p_grp name) RETURNS text[]
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $f$
	WITH RECURSIVE member (id) AS (
		SELECT p_role UNION SELECT m.roleid FROM pg_auth_members m JOIN member ON member.id = m.member
	)
	SELECT coalesce(array_agg(what ORDER BY what), '{}') FROM (
		SELECT format('is a member of %I', r.rolname) FROM member m JOIN pg_roles r ON r.oid = m.id
		WHERE r.oid <> p_role AND r.rolname <> p_grp
	UNION ALL
		SELECT format('%I has an attribute that it must not have', r.rolname) FROM member m JOIN pg_roles r ON r.oid = m.id
		WHERE r.rolsuper OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication OR r.rolbypassrls
	UNION ALL
		SELECT format('may create in schema %I', n.nspname) FROM pg_namespace n
		WHERE n.nspname !~ '^pg_(toast|temp)' AND has_schema_privilege(p_role, n.oid, 'CREATE')
	UNION ALL
		SELECT format('may create in database %I', current_database()) WHERE has_database_privilege(p_role, current_database(), 'CREATE')
	UNION ALL -- functions and catalogues that PostgreSQL itself keeps from PUBLIC
		SELECT format('may call %s', p.oid::regprocedure) FROM pg_init_privs i JOIN pg_proc p ON p.oid = i.objoid
		WHERE i.classoid = 'pg_proc'::regclass AND i.privtype = 'i' AND has_function_privilege(p_role, p.oid, 'EXECUTE')
	UNION ALL
		SELECT format('may read %s', c.oid::regclass) FROM pg_init_privs i JOIN pg_class c ON c.oid = i.objoid
		WHERE i.classoid = 'pg_class'::regclass AND i.privtype = 'i' AND i.objsubid = 0 AND c.relkind IN ('r', 'v')
			AND has_table_privilege(p_role, c.oid, 'SELECT')
			AND NOT EXISTS (SELECT FROM aclexplode(i.initprivs) a WHERE a.grantee = 0 AND a.privilege_type = 'SELECT')
	UNION ALL -- a serial column's sequence belongs to inserting, nothing else does
		SELECT format('may use sequence %s', c.oid::regclass) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind = 'S' AND n.nspname !~ '^pg_(toast|temp)'
			AND CASE WHEN c.relkind = 'S' THEN has_sequence_privilege(p_role, c.oid, 'SELECT, UPDATE')
				OR has_sequence_privilege(p_role, c.oid, 'USAGE') AND NOT EXISTS (
					SELECT FROM pg_depend d JOIN stint.item i ON i.grp = p_grp AND i.rel = d.refobjid AND i.privilege = 'INSERT'
					WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.refclassid = 'pg_class'::regclass AND d.deptype = 'a') END
	UNION ALL
		SELECT format('may use foreign server %I', s.srvname) FROM pg_foreign_server s WHERE has_server_privilege(p_role, s.oid, 'USAGE')
	UNION ALL
		SELECT format('may use foreign-data wrapper %I', w.fdwname) FROM pg_foreign_data_wrapper w WHERE has_foreign_data_wrapper_privilege(p_role, w.oid, 'USAGE')
	UNION ALL
		SELECT DISTINCT format('may use large object %s', l.oid) FROM pg_largeobject_metadata l, aclexplode(l.lomacl) a
		WHERE a.grantee = 0 OR a.grantee IN (SELECT id FROM member)
	UNION ALL
		SELECT format('may set parameter %s', a.parname) FROM pg_parameter_acl a
		WHERE has_parameter_privilege(p_role, a.parname, 'SET') OR has_parameter_privilege(p_role, a.parname, 'ALTER SYSTEM')
	) AS found (what)
$f$;

-- What a subject may do by itself: the privileges of the role that
-- stint.subject_role says it is, on the tables that are named, or on all.
-- restricted says that row security applies to that role there.
CREATE FUNCTION stint.entitlement(p_subject text, p_tables jsonb) RETURNS jsonb
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
	WITH who AS MATERIALIZED (
		SELECT r.oid, r.rolsuper OR r.rolbypassrls AS free FROM stint.subject_role s JOIN pg_roles r ON r.rolname = s.role
		WHERE s.subject = p_subject AND (r.rolvaliduntil IS NULL OR r.rolvaliduntil > clock_timestamp())
	), asked AS (
		SELECT c.oid FROM jsonb_to_recordset(p_tables) AS t ("schema" text, "table" text)
		JOIN pg_namespace n ON n.nspname = t."schema" JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t."table"
	)
	SELECT jsonb_build_object('known', EXISTS (SELECT FROM who), 'tables', (
		SELECT coalesce(jsonb_agg(jsonb_build_object('schema', e.schema_name, 'table', e.table_name, 'privilege', e.privilege,
			'columns', coalesce(to_jsonb(e.cols), '"*"'), 'rows', CASE
				WHEN NOT c.relrowsecurity OR who.free OR NOT c.relforcerowsecurity AND pg_has_role(who.oid, c.relowner, 'USAGE') THEN '*'
				ELSE '' END)), '[]')
		FROM who, LATERAL stint.effective(who.oid) e JOIN pg_class c ON c.oid = e.rel
		WHERE (p_tables IS NULL OR e.rel IN (SELECT oid FROM asked)) AND e.privilege IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
			AND has_schema_privilege(who.oid, c.relnamespace, 'USAGE')))
$f$;
