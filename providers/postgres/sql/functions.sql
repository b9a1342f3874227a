-- The functions, all of them, made anew by every installation. Each pins its
-- search_path, with pg_temp last, where it would otherwise come first and let
-- the caller's temporary tables stand in for the catalogue. No text reaches
-- dynamic SQL but through %I, %L or a closed list.
--
-- SQLSTATEs of our own: ST001 no such table or column, ST002 outside the
-- ceiling, ST003 a row policy without effect, ST004 the lease has ended or was
-- there before, ST005 malformed, ST006 the time is over, ST007 too many grants.

-- The two that row policies call are replaced in place: policies depend on them.

CREATE OR REPLACE FUNCTION stint.sub() RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
	SELECT l.subject FROM stint.lease l
	WHERE l.role_name = session_user AND l.revoked_at IS NULL AND l.not_after > clock_timestamp()
$f$;
COMMENT ON FUNCTION stint.sub() IS
	'The subject (ISSUER#SUB) of the lease that this session logged in with; NULL without one, or once it has ended.';

CREATE OR REPLACE FUNCTION stint.rows(rel regclass, command text) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
	SELECT i.rows FROM stint.lease l JOIN stint.item i ON i.grp = l.grp
	WHERE l.role_name = session_user AND l.revoked_at IS NULL AND l.not_after > clock_timestamp()
		AND i.rel = $1 AND i.privilege = $2
$f$;
COMMENT ON FUNCTION stint.rows(regclass, text) IS
	'The row policy that the lease of this session has for a table and a command, ''*'' for all rows; NULL without a lease, or once it has ended.';

-- Whatever else there is of an earlier version goes.
DO $do$
DECLARE f regprocedure;
BEGIN
	FOR f IN SELECT p.oid FROM pg_catalog.pg_proc p
		WHERE p.pronamespace = 'stint'::regnamespace
			AND p.oid NOT IN ('stint.sub()'::regprocedure, 'stint.rows(regclass, text)'::regprocedure)
	LOOP
		EXECUTE format('DROP FUNCTION %s', f);
	END LOOP;
END
$do$;

CREATE FUNCTION stint.version() RETURNS integer
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $f$ SELECT {version} $f$;

-- This database's mark in the comments of its roles: roles are of the whole
-- cluster, and another database there may have a stint of its own.
CREATE FUNCTION stint.mark() RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $f$
BEGIN
	RETURN (SELECT format('stint db=%s ', oid) FROM pg_database WHERE datname = current_database());
END
$f$;

CREATE FUNCTION stint.role_name(p_lease text) RETURNS name
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $f$
BEGIN
	IF p_lease IS NULL OR p_lease !~ '^[a-z0-9]{16,40}$' THEN
		RAISE EXCEPTION 'a lease id is 16 to 40 lower-case letters and digits' USING ERRCODE = 'ST005';
	END IF;
	RETURN 'stint_v_' || p_lease;
END
$f$;

-- The oid of a role of this database's making; NULL if there is none.
CREATE FUNCTION stint.role_oid(p_name name) RETURNS oid
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $f$
BEGIN
	RETURN (SELECT r.oid FROM pg_roles r
		WHERE r.rolname = p_name AND starts_with(shobj_description(r.oid, 'pg_authid'), stint.mark()));
END
$f$;

-- What terms mean here and now: names become oids.
CREATE FUNCTION stint.resolve(p_terms jsonb)
RETURNS TABLE (rel oid, nsp oid, schema_name name, table_name name, privilege text, cols name[], nums int2[], row_policy text)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $f$
DECLARE t jsonb;
BEGIN
	IF jsonb_typeof(p_terms->'tables') IS DISTINCT FROM 'array' OR p_terms->'tables' = '[]' THEN
		RAISE EXCEPTION 'the terms name no tables' USING ERRCODE = 'ST005';
	END IF;
	FOR t IN SELECT jsonb_array_elements(p_terms->'tables') LOOP
		privilege := t->>'privilege';
		row_policy := t->>'rows';
		IF privilege IS NULL OR row_policy IS NULL OR privilege NOT IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE') THEN
			RAISE EXCEPTION 'malformed terms' USING ERRCODE = 'ST005';
		END IF;
		SELECT c.oid, n.oid, n.nspname, c.relname INTO rel, nsp, schema_name, table_name
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = t->>'schema' AND c.relname = t->>'table' AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
			AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'stint');
		IF NOT FOUND THEN
			RAISE EXCEPTION 'there is no table %', format('%I.%I', t->>'schema', t->>'table') USING ERRCODE = 'ST001';
		END IF;
		cols := NULL;
		nums := NULL;
		IF t->'columns' IS DISTINCT FROM '"*"' THEN
			IF jsonb_typeof(t->'columns') IS DISTINCT FROM 'array' OR t->'columns' = '[]' OR privilege = 'DELETE' THEN
				RAISE EXCEPTION 'malformed columns' USING ERRCODE = 'ST005';
			END IF;
			SELECT array_agg(a.attname ORDER BY a.attnum), array_agg(a.attnum ORDER BY a.attnum) INTO cols, nums
			FROM pg_attribute a
			WHERE a.attrelid = rel AND a.attnum > 0 AND NOT a.attisdropped
				AND a.attname IN (SELECT jsonb_array_elements_text(t->'columns'));
			IF cardinality(cols) IS DISTINCT FROM jsonb_array_length(t->'columns') THEN
				RAISE EXCEPTION 'table % has not all of the columns %', format('%I.%I', schema_name, table_name), t->'columns'
					USING ERRCODE = 'ST001';
			END IF;
		END IF;
		RETURN NEXT;
	END LOOP;
END
$f$;

-- Whether the row policy of a privilege is enforced for a role: every permissive
-- policy that applies asks stint.rows for this table and command and knows the
-- name, or a restrictive one does. It is the caller's expression that is read,
-- not what it calls: what a function of the DBA's asks is not seen.
CREATE FUNCTION stint.enforced(p_rel oid, p_role oid, p_command text, p_rows text) RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $f$
BEGIN
	RETURN (
	WITH policy AS (
		SELECT p.polpermissive AS permissive, p_command IN ('SELECT', 'UPDATE', 'DELETE') AS reads,
			p_command IN ('INSERT', 'UPDATE') AS writes, pg_get_expr(p.polqual, p.polrelid) AS qual,
			coalesce(pg_get_expr(p.polwithcheck, p.polrelid), pg_get_expr(p.polqual, p.polrelid)) AS written,
			format('stint.rows(%L::regclass, %L::text)', p.polrelid::regclass::text, p_command) AS asks,
			quote_literal(p_rows) || '::text' AS knows
		FROM pg_policy p
		WHERE p.polrelid = p_rel
			AND p.polcmd IN ('*', CASE p_command WHEN 'SELECT' THEN 'r' WHEN 'INSERT' THEN 'a' WHEN 'UPDATE' THEN 'w' ELSE 'd' END)
			AND EXISTS (SELECT FROM unnest(p.polroles) AS r (id) WHERE r.id = 0 OR pg_has_role(p_role, r.id, 'USAGE'))
	), judged AS (
		SELECT permissive,
			(NOT reads OR coalesce(strpos(qual, asks) > 0 AND strpos(qual, knows) > 0, false))
			AND (NOT writes OR coalesce(strpos(written, asks) > 0 AND strpos(written, knows) > 0, false)) AS good
		FROM policy
	)
	SELECT c.relrowsecurity AND (
		coalesce((SELECT bool_or(good) FROM judged WHERE NOT permissive), false)
		OR coalesce((SELECT bool_and(good) FROM judged WHERE permissive), false))
	FROM pg_class c WHERE c.oid = p_rel);
END
$f$;

-- Whether the ceiling, which is the owner of these functions, may hand out what
-- is asked.
CREATE FUNCTION stint.may_grant(p_rel oid, p_privilege text, p_nums int2[]) RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $f$
BEGIN
	IF p_nums IS NULL THEN
		RETURN has_table_privilege(current_user, p_rel, p_privilege || ' WITH GRANT OPTION');
	END IF;
	RETURN (SELECT bool_and(has_column_privilege(current_user, p_rel, n, p_privilege || ' WITH GRANT OPTION')) FROM unnest(p_nums) n);
END
$f$;

-- Whether a group has in the access list itself, and not by way of PUBLIC, what
-- it is to have.
CREATE FUNCTION stint.has(p_grp oid, p_rel oid, p_privilege text, p_nums int2[]) RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $f$
BEGIN
	IF p_nums IS NULL THEN
		RETURN EXISTS (SELECT FROM pg_class c, aclexplode(c.relacl) a
			WHERE c.oid = p_rel AND a.grantee = p_grp AND a.privilege_type = p_privilege);
	END IF;
	RETURN NOT EXISTS (SELECT FROM unnest(p_nums) AS n (num) WHERE NOT EXISTS (
		SELECT FROM pg_attribute t, aclexplode(t.attacl) a
		WHERE t.attrelid = p_rel AND t.attnum = n.num AND a.grantee = p_grp AND a.privilege_type = p_privilege));
END
$f$;

-- Gives a group what it lacks of its terms, never more than the ceiling: first
-- asked, then enforced by PostgreSQL, which lets nobody hand out what he does not
-- hold with grant option, then looked at. A DBA who takes something from the
-- ceiling meanwhile makes one of the three fail; who takes it later takes it from
-- the groups as well, because REVOKE follows grant options (CASCADE).
CREATE FUNCTION stint.furnish(p_grp name, p_terms jsonb) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $f$
DECLARE
	i record;
	s record;
	v_grp oid := stint.role_oid(p_grp);
BEGIN
	IF NOT has_database_privilege(v_grp, current_database(), 'CONNECT') THEN -- taken from PUBLIC, as it should be
		IF NOT has_database_privilege(current_user, current_database(), 'CONNECT WITH GRANT OPTION') THEN
			RAISE EXCEPTION 'CONNECT on database % is outside the ceiling %', current_database(), current_user USING ERRCODE = 'ST002';
		END IF;
		EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), p_grp);
	END IF;
	FOR i IN SELECT * FROM stint.resolve(p_terms) LOOP
		IF NOT has_schema_privilege(current_user, i.nsp, 'USAGE WITH GRANT OPTION') OR NOT stint.may_grant(i.rel, i.privilege, i.nums) THEN
			RAISE EXCEPTION '% on % is outside the ceiling %', i.privilege, format('%I.%I', i.schema_name, i.table_name), current_user
				USING ERRCODE = 'ST002';
		END IF;
		IF i.row_policy <> '*' AND NOT stint.enforced(i.rel, v_grp, i.privilege, i.row_policy) THEN
			RAISE EXCEPTION 'row policy % has no effect on % of %: row security is off, or a permissive policy does not ask stint.rows',
				i.row_policy, i.privilege, format('%I.%I', i.schema_name, i.table_name) USING ERRCODE = 'ST003';
		END IF;
		IF stint.has(v_grp, i.rel, i.privilege, i.nums) AND has_schema_privilege(v_grp, i.nsp, 'USAGE') THEN
			CONTINUE;
		END IF;
		-- An access list has to fit into one page; beyond that nobody can be granted
		-- anything any more, least of all by the DBA.
		IF (SELECT cardinality(c.relacl) FROM pg_class c WHERE c.oid = i.rel) > 400
			OR (SELECT max(cardinality(a.attacl)) FROM pg_attribute a WHERE a.attrelid = i.rel) > 400 THEN
			RAISE EXCEPTION 'too many different grants are alive on %', format('%I.%I', i.schema_name, i.table_name) USING ERRCODE = 'ST007';
		END IF;
		EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', i.schema_name, p_grp);
		EXECUTE format('GRANT %s%s ON TABLE %I.%I TO %I', i.privilege,
			CASE WHEN i.cols IS NULL THEN '' ELSE ' (' || (SELECT string_agg(quote_ident(c), ', ') FROM unnest(i.cols) c) || ')' END,
			i.schema_name, i.table_name, p_grp);
		IF i.privilege = 'INSERT' THEN -- what a serial column takes its values from belongs to inserting
			FOR s IN SELECT n.nspname, c.relname FROM pg_depend d JOIN pg_class c ON c.oid = d.objid JOIN pg_namespace n ON n.oid = c.relnamespace
				WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = i.rel AND d.deptype = 'a'
					AND c.relkind = 'S' AND CASE WHEN c.relkind = 'S' THEN has_sequence_privilege(current_user, c.oid, 'USAGE WITH GRANT OPTION') END
			LOOP
				EXECUTE format('GRANT USAGE ON SEQUENCE %I.%I TO %I', s.nspname, s.relname, p_grp);
			END LOOP;
		END IF;
		IF NOT stint.has(v_grp, i.rel, i.privilege, i.nums) OR NOT stint.may_grant(i.rel, i.privilege, i.nums) THEN
			RAISE EXCEPTION '% on % is not the ceiling''s to give', i.privilege, format('%I.%I', i.schema_name, i.table_name)
				USING ERRCODE = 'ST002';
		END IF;
	END LOOP;
END
$f$;

-- Returns the group for terms, made if need be, and keeps it from being
-- collected until the transaction ends. Group making and collecting wait for each
-- other on our own table: two grants on one table at a time would make one of
-- them fail, and an advisory lock could be held by any user of the database.
CREATE FUNCTION stint.group_for(p_terms text) RETURNS name
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $f$
DECLARE
	v_terms jsonb := p_terms::jsonb;
	v_what text;
	v_name name;
	v_grp oid;
	v_complete boolean;
BEGIN
	SELECT string_agg(format('%s/%s/%s', r.rel, r.privilege, r.nums), ';') INTO v_what FROM stint.resolve(v_terms) r;
	v_name := 'stint_g_' || left(encode(sha256(convert_to(stint.mark() || v_what || ';' || p_terms, 'UTF8')), 'hex'), 48);
	v_grp := stint.role_oid(v_name);
	PERFORM FROM stint.grp g WHERE g.name = v_name FOR KEY SHARE;
	IF FOUND AND v_grp IS NOT NULL THEN
		SELECT bool_and(stint.has(v_grp, r.rel, r.privilege, r.nums) AND stint.may_grant(r.rel, r.privilege, r.nums)
			AND (r.row_policy = '*' OR stint.enforced(r.rel, v_grp, r.privilege, r.row_policy)))
		INTO v_complete FROM stint.resolve(v_terms) r;
		IF v_complete AND has_database_privilege(v_grp, current_database(), 'CONNECT') THEN
			RETURN v_name;
		END IF;
	END IF;
	LOCK TABLE stint.grp IN SHARE ROW EXCLUSIVE MODE;
	IF stint.role_oid(v_name) IS NULL THEN
		DELETE FROM stint.grp g WHERE g.name = v_name; -- its role went without us
		EXECUTE format('CREATE ROLE %I NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS', v_name);
		EXECUTE format('COMMENT ON ROLE %I IS %L', v_name, stint.mark() || 'group');
	END IF;
	PERFORM stint.furnish(v_name, v_terms);
	INSERT INTO stint.grp (name, terms) VALUES (v_name, p_terms) ON CONFLICT DO NOTHING;
	INSERT INTO stint.item (grp, rel, privilege, columns, rows)
		SELECT v_name, r.rel, r.privilege, r.cols, r.row_policy FROM stint.resolve(v_terms) r ON CONFLICT DO NOTHING;
	RETURN v_name;
END
$f$;

-- Makes the login role of a lease. p_ttl are seconds by whatever clock; the role
-- ends at the earliest of p_not_after, now + p_ttl and now + max_ttl, so that a
-- clock that is off shortens a life and never lengthens it.
CREATE FUNCTION stint.mint(p_lease text, p_verifier text, p_terms text, p_ttl double precision, p_not_after timestamptz,
	p_connections integer, p_subject text, p_about jsonb)
RETURNS TABLE (role_name name, group_name name, seconds double precision)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
DECLARE
	v_now timestamptz := clock_timestamp();
	v_end timestamptz;
	v_set stint.setting;
	v_role oid;
BEGIN
	role_name := stint.role_name(p_lease);
	IF p_verifier IS NULL OR p_verifier !~ '^SCRAM-SHA-256\$[0-9]{4,6}:[A-Za-z0-9+/=]{16,64}\$[A-Za-z0-9+/=]{44}:[A-Za-z0-9+/=]{44}$' THEN
		RAISE EXCEPTION 'no SCRAM-SHA-256 verifier' USING ERRCODE = 'ST005';
	END IF;
	IF p_terms IS NULL OR p_ttl IS NULL OR p_not_after IS NULL OR p_connections IS NULL OR p_connections < 1 THEN
		RAISE EXCEPTION 'an argument is missing' USING ERRCODE = 'ST005';
	END IF;
	SELECT * INTO STRICT v_set FROM stint.setting;
	v_end := least(p_not_after, v_now + make_interval(secs => least(p_ttl, 1e9)), v_now + v_set.max_ttl);
	IF v_end <= v_now THEN
		RAISE EXCEPTION 'the lease would have ended %s ago by this clock', extract(epoch FROM v_now - v_end) USING ERRCODE = 'ST006';
	END IF;
	group_name := stint.group_for(p_terms);
	INSERT INTO stint.lease (id, role_name, grp, subject, not_after) VALUES (p_lease, mint.role_name, group_name, p_subject, v_end)
		ON CONFLICT DO NOTHING;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'the lease has ended, or was there before' USING ERRCODE = 'ST004';
	END IF;
	EXECUTE format('CREATE ROLE %I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS INHERIT CONNECTION LIMIT %s PASSWORD %L VALID UNTIL %L',
		role_name, least(p_connections, v_set.max_connections), p_verifier,
		to_char(v_end AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00');
	-- From PostgreSQL 16 on the holder has the group's privileges, and cannot become
	-- the group.
	EXECUTE format('GRANT %I TO %I', group_name, role_name)
		|| CASE WHEN current_setting('server_version_num')::int >= 160000 THEN ' WITH INHERIT TRUE, SET FALSE' ELSE '' END;
	EXECUTE format('COMMENT ON ROLE %I IS %L', role_name, stint.mark() || coalesce(p_about, '{}')::text);
	UPDATE stint.lease l SET role = r.oid FROM pg_roles r WHERE l.id = p_lease AND r.rolname = mint.role_name;
	seconds := extract(epoch FROM v_end - clock_timestamp());
	RETURN NEXT;
END
$f$;

-- Lets a lease that has not ended live longer: until the earliest of p_not_after, now +
-- p_ttl and now + max_ttl, and never shorter than before. Returns how many seconds that
-- is. The row is locked first, as in revoke: of the two, the one that comes second sees
-- what the first has done.
CREATE FUNCTION stint.renew(p_lease text, p_ttl double precision, p_not_after timestamptz)
RETURNS TABLE (role_name name, group_name name, seconds double precision)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '1s' AS $f$
DECLARE
	v_now timestamptz := clock_timestamp();
	v_end timestamptz;
	v_lease stint.lease;
BEGIN
	role_name := stint.role_name(p_lease);
	SELECT * INTO v_lease FROM stint.lease l WHERE l.id = p_lease FOR UPDATE;
	IF NOT FOUND OR v_lease.revoked_at IS NOT NULL OR v_lease.dropped_at IS NOT NULL OR v_lease.not_after <= v_now
		OR stint.role_oid(role_name) IS NULL THEN
		RAISE EXCEPTION 'the lease has ended' USING ERRCODE = 'ST004';
	END IF;
	IF p_ttl IS NULL OR p_not_after IS NULL THEN
		RAISE EXCEPTION 'an argument is missing' USING ERRCODE = 'ST005';
	END IF;
	v_end := least(p_not_after, v_now + make_interval(secs => least(p_ttl, 1e9)), v_now + (SELECT s.max_ttl FROM stint.setting s));
	IF v_end > v_lease.not_after THEN
		UPDATE stint.lease l SET not_after = v_end WHERE l.id = p_lease;
		EXECUTE format('ALTER ROLE %I VALID UNTIL %L', role_name, to_char(v_end AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00');
	ELSE
		v_end := v_lease.not_after;
	END IF;
	group_name := v_lease.grp;
	seconds := extract(epoch FROM v_end - clock_timestamp());
	RETURN NEXT;
END
$f$;

-- Ends the sessions of a role, wherever in the cluster they are, and whatever
-- role they have set: pg_stat_activity names whom a session logged in as. It
-- returns how many are left after a quarter of a second.
CREATE FUNCTION stint.kill(p_role oid) RETURNS bigint
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $f$
DECLARE v_left bigint;
BEGIN
	FOR i IN 1..25 LOOP
		PERFORM pg_stat_clear_snapshot();
		SELECT count(pg_terminate_backend(a.pid)) INTO v_left FROM pg_stat_activity a WHERE a.usesysid = p_role;
		EXIT WHEN v_left = 0;
		PERFORM pg_sleep(0.01);
	END LOOP;
	RETURN v_left;
END
$f$;

-- First step of taking back, to be committed by itself: the lease has ended for
-- row policies, and its role cannot log in. What is not known is remembered as
-- ended, so that a mint still on its way fails. Returns disabled; gone, if
-- there is nothing; retry, if the role could not be changed yet: its holder can
-- lock it by changing its own password in an open transaction, which ends with
-- the session.
CREATE FUNCTION stint.revoke(p_lease text) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '300ms' AS $f$
DECLARE
	v_name name := stint.role_name(p_lease);
	v_role oid;
BEGIN
	INSERT INTO stint.lease AS l (id, role_name, revoked_at) VALUES (p_lease, v_name, clock_timestamp())
		ON CONFLICT (id) DO UPDATE SET revoked_at = coalesce(l.revoked_at, clock_timestamp()), subject = NULL;
	v_role := stint.role_oid(v_name);
	IF v_role IS NULL THEN
		UPDATE stint.lease l SET dropped_at = clock_timestamp() WHERE l.id = p_lease AND l.dropped_at IS NULL;
		RETURN 'gone';
	END IF;
	UPDATE stint.lease l SET role = v_role WHERE l.id = p_lease AND l.role IS DISTINCT FROM v_role;
	FOR i IN 1..5 LOOP
		BEGIN
			EXECUTE format('ALTER ROLE %I NOLOGIN', v_name);
			RETURN 'disabled';
		EXCEPTION WHEN lock_not_available OR internal_error THEN -- locked, or changed meanwhile
			PERFORM stint.kill(v_role);
		END;
	END LOOP;
	RETURN 'retry';
END
$f$;

-- Second step: ends the sessions and drops the role. Returns dropped, gone, or
-- retry while there are sessions.
CREATE FUNCTION stint.reap(p_lease text) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '1s' AS $f$
DECLARE
	v_name name := stint.role_name(p_lease);
	v_role oid;
BEGIN
	PERFORM FROM stint.lease l WHERE l.id = p_lease FOR UPDATE; -- first, as in revoke: else each waits for what the other has
	v_role := stint.role_oid(v_name);
	IF v_role IS NULL THEN
		UPDATE stint.lease l SET dropped_at = clock_timestamp() WHERE l.id = p_lease AND l.dropped_at IS NULL AND l.revoked_at IS NOT NULL;
		RETURN 'gone';
	END IF;
	IF (SELECT r.rolcanlogin FROM pg_roles r WHERE r.oid = v_role) OR stint.kill(v_role) > 0 THEN
		RETURN 'retry';
	END IF;
	PERFORM stint.drop_role(v_name);
	UPDATE stint.lease l SET dropped_at = clock_timestamp() WHERE l.id = p_lease;
	RETURN 'dropped';
END
$f$;

-- Drops what a role owns in this database. Only a member of the role may; the
-- membership goes with the role.
CREATE FUNCTION stint.drop_owned(p_name name) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $f$
BEGIN
	EXECUTE format('GRANT %I TO %I', p_name, current_user);
	EXECUTE format('DROP OWNED BY %I', p_name);
END
$f$;

-- Takes from a group what it was granted, one privilege at a time. DROP OWNED
-- and REVOKE ALL would touch columns and privileges in which the ceiling has no
-- part, and fail.
CREATE FUNCTION stint.strip(p_name name, p_role oid) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $f$
DECLARE v_revoke text;
BEGIN
	FOR v_revoke IN
		WITH granted AS (
			SELECT DISTINCT d.classid, d.objid, d.refobjid AS role FROM pg_shdepend d
			WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid = p_role AND d.deptype = 'a'
				AND d.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
		)
		SELECT format('%s ON %s %s', a.privilege_type, CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, c.oid::regclass)
		FROM granted g JOIN pg_class c ON g.classid = 'pg_class'::regclass AND c.oid = g.objid, aclexplode(c.relacl) a WHERE a.grantee = g.role
	UNION
		SELECT format('%s (%I) ON TABLE %s', a.privilege_type, t.attname, t.attrelid::regclass)
		FROM granted g JOIN pg_attribute t ON g.classid = 'pg_class'::regclass AND t.attrelid = g.objid, aclexplode(t.attacl) a WHERE a.grantee = g.role
	UNION
		SELECT format('%s ON SCHEMA %I', a.privilege_type, n.nspname)
		FROM granted g JOIN pg_namespace n ON g.classid = 'pg_namespace'::regclass AND n.oid = g.objid, aclexplode(n.nspacl) a WHERE a.grantee = g.role
	LOOP
		EXECUTE format('REVOKE %s FROM %I', v_revoke, p_name);
	END LOOP;
END
$f$;

-- Drops a role of ours, and with it what its holders made.
CREATE FUNCTION stint.drop_role(p_name name) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $f$
BEGIN
	EXECUTE format('DROP ROLE %I', p_name);
EXCEPTION WHEN dependent_objects_still_exist THEN
	PERFORM stint.drop_owned(p_name);
	EXECUTE format('DROP ROLE %I', p_name);
END
$f$;

-- Ends sessions of ours that outlived their roles: whoever was logging in while
-- the role was dropped. Returns how many.
CREATE FUNCTION stint.strays() RETURNS bigint
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
	SELECT count(pg_terminate_backend(a.pid)) FROM pg_stat_activity a
	WHERE a.usesysid IN (SELECT l.role FROM stint.lease l WHERE l.dropped_at IS NOT NULL)
		AND NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = a.usesysid)
$f$;

-- Every lease that is alive here, in the books or as a role.
CREATE FUNCTION stint.list() RETURNS TABLE (lease text, not_after timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
	SELECT coalesce(l.id, substr(r.rolname, 9)), l.not_after
	FROM (SELECT * FROM stint.lease WHERE dropped_at IS NULL) l
	FULL JOIN (SELECT rolname FROM pg_roles
		WHERE rolname ~ '^stint_v_[a-z0-9]{16,40}$' AND starts_with(shobj_description(oid, 'pg_authid'), stint.mark())) r
	ON r.rolname = l.role_name
$f$;

-- Collects groups that no lease has used for a while, and forgets leases that
-- ended a day ago. Returns how many groups went, and how many could not. A group
-- that a mint is about to use is locked by it, and passed over.
CREATE FUNCTION stint.tidy(p_idle interval) RETURNS TABLE (collected integer, stuck integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '1s' AS $f$
DECLARE v_name name;
BEGIN
	collected := 0;
	stuck := 0;
	DELETE FROM stint.lease l WHERE l.dropped_at < clock_timestamp() - interval '1 day';
	LOCK TABLE stint.grp IN SHARE ROW EXCLUSIVE MODE;
	-- In a copy of a database the groups of the original have what they have there.
	PERFORM stint.strip(r.rolname, r.oid) FROM pg_roles r
	WHERE r.rolname ~ '^stint_g_[0-9a-f]{48}$' AND NOT starts_with(coalesce(shobj_description(r.oid, 'pg_authid'), ''), stint.mark())
		AND EXISTS (SELECT FROM pg_shdepend d WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid = r.oid AND d.deptype = 'a'
			AND d.dbid = (SELECT oid FROM pg_database WHERE datname = current_database()));
	INSERT INTO stint.grp (name, terms) SELECT r.rolname, '' FROM pg_roles r -- groups that the books have lost
		WHERE r.rolname ~ '^stint_g_' AND shobj_description(r.oid, 'pg_authid') = stint.mark() || 'group' ON CONFLICT DO NOTHING;
	FOR v_name IN SELECT g.name FROM stint.grp g WHERE g.made_at <= clock_timestamp() - p_idle AND stint.idle(g.name, p_idle)
		FOR UPDATE SKIP LOCKED
	LOOP
		CONTINUE WHEN NOT stint.idle(v_name, p_idle); -- looked at again, now that it is locked
		BEGIN
			IF stint.role_oid(v_name) IS NOT NULL THEN
				PERFORM stint.strip(v_name, stint.role_oid(v_name));
				PERFORM stint.drop_role(v_name);
			END IF;
			DELETE FROM stint.grp g WHERE g.name = v_name;
			collected := collected + 1;
		EXCEPTION WHEN OTHERS THEN -- a DBA is at the same table, or gave the group something: the next time
			stuck := stuck + 1;
		END;
	END LOOP;
	RETURN NEXT;
END
$f$;

CREATE FUNCTION stint.idle(p_grp name, p_idle interval) RETURNS boolean
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $f$
	SELECT NOT EXISTS (SELECT FROM stint.lease l WHERE l.grp = p_grp AND (l.dropped_at IS NULL OR l.dropped_at > clock_timestamp() - p_idle))
$f$;

-- What is installed, and whether whoever asks is as harmless as it should be.
CREATE FUNCTION stint.standing() RETURNS TABLE (version integer, server integer, harmless boolean)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
	SELECT stint.version(), current_setting('server_version_num')::int,
		NOT (r.rolsuper OR r.rolcreaterole OR r.rolbypassrls OR r.rolreplication OR pg_has_role(r.oid, current_user, 'MEMBER'))
	FROM pg_roles r WHERE r.rolname = session_user
$f$;
