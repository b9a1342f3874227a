// An identity provider: node idp.mjs PORT RESOURCE. Its one user is alice, its one
// client an agent on her desktop. The access tokens for RESOURCE are JWTs.
import { exportJWK, generateKeyPair } from 'jose';
import Provider from 'oidc-provider';

const [port, resource] = process.argv.slice(2);
const groups = { alice: ['engineering'] };

const { privateKey } = await generateKeyPair('RS256', { extractable: true });
const provider = new Provider(`http://127.0.0.1:${port}`, {
  jwks: { keys: [{ ...(await exportJWK(privateKey)), kid: 'one', alg: 'RS256', use: 'sig' }] },
  clients: [{
    client_id: 'desktop-at-idp',
    application_type: 'native',
    token_endpoint_auth_method: 'none',
    redirect_uris: ['http://127.0.0.1/callback'],
  }],
  pkce: { required: () => true },
  claims: { openid: ['sub'], groups: ['groups'] },
  conformIdTokenClaims: false, // groups are in the ID token, not at userinfo alone
  findAccount: (_, id) => groups[id] && {
    accountId: id,
    claims: () => ({ sub: id, groups: groups[id] }),
  },
  extraTokenClaims: (_, token) => ({ groups: groups[token.accountId] }),
  features: {
    devInteractions: { enabled: true }, // pages to sign in and to consent on
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo: (_, indicator) => {
        if (indicator !== resource) throw new Error(`no resource is ${indicator}`);
        return { audience: indicator, scope: 'use', accessTokenFormat: 'jwt', accessTokenTTL: 600 };
      },
    },
  },
});
provider.on('server_error', (_, err) => console.error(err));
provider.listen(port, '127.0.0.1');
