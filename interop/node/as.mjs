// An authorization server: node as.mjs PORT REDIRECT [JWKS]. Its one user is alice, its one
// client is Stint, with a secret, and as https://stint.example by its keys. It narrows on refresh, rotates refresh tokens and takes the use of an
// old one for theft, revokes (RFC 7009) and introspects (RFC 7662).
import Provider from 'oidc-provider';

const [port, redirect, jwks] = process.argv.slice(2);
const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [{
    client_id: 'stint-at-as', client_secret: 'a secret of the client that is long enough', redirect_uris: [redirect],
    grant_types: ['authorization_code', 'refresh_token'],
  }, ...(jwks ? [{
    client_id: 'https://stint.example', token_endpoint_auth_method: 'private_key_jwt', jwks: JSON.parse(jwks), redirect_uris: [redirect],
    grant_types: ['authorization_code', 'refresh_token'],
  }] : [])],
  scopes: ['openid', 'offline_access', 'notes:read', 'notes:write', 'mail:read'],
  pkce: { required: () => true },
  findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
  issueRefreshToken: () => true,
  rotateRefreshToken: () => true,
  ttl: { AccessToken: 600, Grant: 86400, Session: 86400, Interaction: 600, RefreshToken: 86400, AuthorizationCode: 60 },
  features: {
    devInteractions: { enabled: true },
    revocation: { enabled: true },
    introspection: { enabled: true },
    resourceIndicators: { enabled: false },
  },
});
provider.on('server_error', (_, err) => console.error(err));
provider.listen(port, '127.0.0.1');
