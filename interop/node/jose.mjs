// jose verifies what Stint signs, by the keys that Stint publishes, over changes of
// the key.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { test } from 'node:test';
import { createRemoteJWKSet, decodeProtectedHeader, jwtVerify } from 'jose';

const w = JSON.parse(process.env.WORLD);
const uri = new URL(`${w.issuer}/oauth2/jwks`);
const want = {
  issuer: w.issuer, audience: w.api, typ: 'at+jwt', algorithms: ['ES256'],
  requiredClaims: ['sub', 'client_id', 'iat', 'exp', 'jti'], // RFC 9068 section 2.2
};
const anew = () => createRemoteJWKSet(uri); // has no keys yet
const kid = (token) => decodeProtectedHeader(token).kid;
const published = async () => (await (await fetch(uri)).json()).keys.map((k) => k.kid);
const rotate = (...flags) => execFileSync(w.stint, ['keys', 'rotate', '--config', w.config, ...flags]);

async function exchange() {
  const response = await fetch(`${w.issuer}/oauth2/token`, {
    method: 'POST',
    headers: { authorization: `Basic ${btoa(`orders-basic:${w.secrets['orders-basic']}`)}` },
    body: new URLSearchParams({
      grant_type: 'urn:ietf:params:oauth:grant-type:token-exchange', resource: w.api, scope: 'orders:read',
      subject_token: w.alice, subject_token_type: 'urn:ietf:params:oauth:token-type:access_token',
    }),
  });
  assert.equal(response.status, 200, await response.clone().text());
  return (await response.json()).access_token;
}

const first = await exchange();

test('a token is what it says', async () => {
  const { payload, protectedHeader } = await jwtVerify(first, anew(), want);
  assert.deepEqual(Object.keys(protectedHeader).sort(), ['alg', 'kid', 'typ']);
  assert.equal(payload.sub, `${w.idp}#alice`);
  assert.equal(payload.client_id, 'orders-basic');
  assert.equal(payload.scope, 'orders:read');
});

for (const [name, other, code] of [
  ['issuer', { issuer: w.idp }, 'ERR_JWT_CLAIM_VALIDATION_FAILED'],
  ['audience', { audience: w.mcp }, 'ERR_JWT_CLAIM_VALIDATION_FAILED'],
  ['type', { typ: 'JWT' }, 'ERR_JWT_CLAIM_VALIDATION_FAILED'],
  ['algorithm', { algorithms: ['RS256'] }, 'ERR_JOSE_ALG_NOT_ALLOWED'],
]) {
  test(`a token is not taken for one of another ${name}`, async () => {
    await assert.rejects(jwtVerify(first, anew(), { ...want, ...other }), { code });
  });
}

test('a new key is published before it signs', async () => {
  const before = await published();
  rotate();
  const after = await published();
  assert.deepEqual(after.slice(0, before.length), before);
  assert.equal(after.length, before.length + 1);
  assert.equal(kid(await exchange()), kid(first));
});

test('a key that signs at once is found by who has the old ones, and the old tokens verify', async () => {
  const keys = createRemoteJWKSet(uri, { cooldownDuration: 0 });
  await jwtVerify(first, keys, want); // now it has the old ones
  rotate('--now');
  const second = await exchange();
  assert.notEqual(kid(second), kid(first));
  await jwtVerify(second, keys, want);
  for (const token of [first, second]) await jwtVerify(token, anew(), want);
});
