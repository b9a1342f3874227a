
-- Whoever is not named here has nothing.
REVOKE ALL ON ALL TABLES IN SCHEMA stint FROM PUBLIC, {broker};
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA stint FROM PUBLIC, {broker};
REVOKE ALL ON SCHEMA stint FROM PUBLIC;
GRANT USAGE ON SCHEMA stint TO {broker};
GRANT EXECUTE ON FUNCTION stint.version(), stint.mint(text, text, text, double precision, timestamptz, integer, text, jsonb),
	stint.renew(text, double precision, timestamptz), stint.revoke(text), stint.reap(text), stint.strays(), stint.list(), stint.tidy(interval), stint.attest(text),
	stint.entitlement(text, jsonb), stint.standing() TO {broker};
-- These tell a session about itself, for row policies, which are everybody's.
GRANT EXECUTE ON FUNCTION stint.sub(), stint.rows(regclass, text) TO PUBLIC;

RESET ROLE;
COMMIT;
