// openid-client asks Stint for what a client asks an authorization server for.
import assert from 'node:assert/strict';
import { before, test } from 'node:test';
import * as oauth from 'openid-client';

const w = JSON.parse(process.env.WORLD);
const exchange = 'urn:ietf:params:oauth:grant-type:token-exchange';
const accessToken = 'urn:ietf:params:oauth:token-type:access_token';

const ways = {
  client_secret_basic: { id: 'orders-basic', auth: () => oauth.ClientSecretBasic(w.secrets['orders-basic']) },
  client_secret_post: { id: 'orders-post', auth: () => oauth.ClientSecretPost(w.secrets['orders-post']) },
  private_key_jwt: {
    id: 'orders-jwt',
    auth: async () => {
      const key = await crypto.subtle.importKey('jwk', w.key, { name: 'ECDSA', namedCurve: 'P-256' }, false, ['sign']);
      return oauth.PrivateKeyJwt({ key, kid: w.key.kid });
    },
  },
};

const discover = (id, auth, algorithm = 'oauth2') =>
  oauth.discovery(new URL(w.issuer), id, undefined, auth, { algorithm, execute: [oauth.allowInsecureRequests] });
const basic = (id) => discover(id, oauth.ClientSecretBasic(w.secrets[id]));
const alices = (more) => ({
  subject_token: w.alice, subject_token_type: accessToken, resource: w.api, scope: 'orders:read', ...more,
});

let api;
before(async () => { api = await basic('orders-api'); });

test('both documents of metadata are found, and say the same', async () => {
  const [oauth2, oidc] = await Promise.all(['oauth2', 'oidc'].map(async (algorithm) => {
    const config = await discover('orders-basic', oauth.None(), algorithm);
    return { ...config.serverMetadata() };
  }));
  for (const [name, value] of Object.entries(oauth2)) assert.deepEqual(oidc[name], value, name);
  assert.equal(oauth2.issuer, w.issuer);
  assert.ok(oauth2.grant_types_supported.includes(exchange));
  assert.deepEqual(oidc.id_token_signing_alg_values_supported, ['ES256']);
});

for (const [method, { id, auth }] of Object.entries(ways)) {
  test(`${method}: exchanged, introspected, revoked`, async () => {
    const config = await discover(id, await auth());
    assert.ok(config.serverMetadata().token_endpoint_auth_methods_supported.includes(method));
    const got = await oauth.genericGrantRequest(config, exchange, alices());
    assert.equal(got.token_type, 'bearer');
    assert.equal(got.issued_token_type, accessToken);
    assert.equal(got.scope, 'orders:read');
    assert.ok(got.expiresIn() > 0 && got.expiresIn() <= 300, `expires in ${got.expiresIn()}`);

    const seen = await oauth.tokenIntrospection(api, got.access_token);
    assert.equal(seen.active, true);
    assert.equal(seen.sub, `${w.idp}#alice`);
    assert.equal(seen.client_id, id);
    assert.equal(seen.aud, w.api);
    assert.deepEqual(seen.act, { iss: w.issuer, sub: id });

    await oauth.tokenRevocation(config, got.access_token);
    assert.deepEqual(await oauth.tokenIntrospection(api, got.access_token), { active: false });
  });

  test(`${method}: it learns of a token for itself`, async () => {
    const { access_token: token } = await oauth.genericGrantRequest(
      await discover('desktop', oauth.ClientSecretPost(w.secrets.desktop)), exchange, alices({ resource: w.mcp }));
    const config = await discover(id, await auth());
    assert.equal((await oauth.tokenIntrospection(config, token)).active, true);
    const next = await oauth.genericGrantRequest(config, exchange, alices({ subject_token: token }));
    assert.deepEqual((await oauth.tokenIntrospection(api, next.access_token)).act,
      { iss: w.issuer, sub: id, act: { iss: w.issuer, sub: 'desktop' } });
  });
}

test('a client acts for itself', async () => {
  const got = await oauth.clientCredentialsGrant(await basic('batch'), { resource: w.api, scope: 'orders:read' });
  const seen = await oauth.tokenIntrospection(api, got.access_token);
  assert.deepEqual([seen.active, seen.sub, seen.act], [true, 'batch', undefined]);
});

const refusals = {
  'a scope that no rule gives': [alices({ scope: 'orders:write' }), 'invalid_scope'],
  'a scope that there is not': [alices({ scope: 'orders:burn' }), 'invalid_scope'],
  'no scope': [alices({ scope: '' }), 'invalid_scope'],
  'a target that there is not': [alices({ resource: 'https://other.example' }), 'invalid_target'],
  'a target of other clients': [alices({ resource: w.mcp }), 'invalid_target'],
  'a subject token with another signature': [alices({ subject_token: w.alice.replace(/[^.]{8}$/, 'AAAAAAAA') }), 'invalid_request'],
  'a subject token that is said to be an ID token': [alices({ subject_token_type: accessToken.replace('access', 'id') }), 'invalid_request'],
  'details of a type that there is not': [alices({ authorization_details: '[{"type":"other"}]' }), 'invalid_authorization_details'],
};
for (const [what, [parameters, error]] of Object.entries(refusals)) {
  test(`refused with ${error}: ${what}`, async () => {
    await assert.rejects(oauth.genericGrantRequest(await basic('orders-basic'), exchange, parameters),
      { name: 'ResponseBodyError', code: 'OAUTH_RESPONSE_BODY_ERROR', error, status: 400 });
  });
}

test('refused with unauthorized_client: a grant type that is not registered', async () => {
  await assert.rejects(oauth.genericGrantRequest(await basic('batch'), exchange, alices()),
    { name: 'ResponseBodyError', error: 'unauthorized_client', status: 400 });
});

test('refused with unsupported_grant_type: a grant type that there is not', async () => {
  await assert.rejects(oauth.refreshTokenGrant(await basic('orders-basic'), 'made-up'),
    { name: 'ResponseBodyError', error: 'unsupported_grant_type', status: 400 });
});

// A challenge comes before the error in the body, for this client.
for (const [method, auth] of [['client_secret_basic', oauth.ClientSecretBasic], ['client_secret_post', oauth.ClientSecretPost]]) {
  test(`refused with a challenge: ${method} with a wrong secret`, async () => {
    const config = await discover(ways[method].id, auth('wrong'));
    await assert.rejects(oauth.genericGrantRequest(config, exchange, alices()), (err) => {
      assert.equal(err.code, 'OAUTH_WWW_AUTHENTICATE_CHALLENGE');
      assert.equal(err.status, 401);
      assert.equal(err.cause[0].scheme, 'basic');
      return true;
    });
  });
}
