// An MCP server on the TypeScript SDK that gets a token for each call, by openid-client
// and jose: nothing of Stint's own.
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js'
import { StreamableHTTPServerTransport } from '@modelcontextprotocol/sdk/server/streamableHttp.js'
import { requireBearerAuth } from '@modelcontextprotocol/sdk/server/auth/middleware/bearerAuth.js'
import { InvalidTokenError } from '@modelcontextprotocol/sdk/server/auth/errors.js'
import express from 'express'
import { createRemoteJWKSet, jwtVerify } from 'jose'
import * as oauth from 'openid-client'
import { z } from 'zod'

const { STINT, RESOURCE, ORDERS_MCP_SECRET, API, LISTEN } = process.env
const [host, port] = LISTEN.split(':')

// 1. Who we are at Stint.
const options = STINT.startsWith('http:') ? { execute: [oauth.allowInsecureRequests], algorithm: 'oauth2' } : { algorithm: 'oauth2' }
const stint = await oauth.discovery(new URL(STINT), 'orders-mcp', undefined, oauth.ClientSecretBasic(ORDERS_MCP_SECRET), options)

// 2. A token is for us if Stint signed it, for our resource (RFC 9068 section 4). One for a
//    single call is used up when it is exchanged.
const keys = createRemoteJWKSet(new URL(stint.serverMetadata().jwks_uri))
async function verifyAccessToken(token) {
  try {
    const { payload } = await jwtVerify(token, keys, { issuer: STINT, audience: RESOURCE, typ: 'at+jwt', algorithms: ['ES256', 'EdDSA'] })
    return { token, clientId: payload.client_id, scopes: (payload.scope ?? '').split(' '), expiresAt: payload.exp }
  } catch (e) {
    if (e.code?.startsWith('ERR_JW')) throw new InvalidTokenError('the token is not good here')
    throw e // the keys could not be had: that is not the token's fault
  }
}

// 3. For each call of a tool, a token for the API that is good for this call alone.
async function vend(extra, tool, args, scope, once) {
  const detail = { type: 'mcp_tool_call', tool, arguments: args, ...(once && { once }) }
  try {
    const answer = await oauth.genericGrantRequest(stint, 'urn:ietf:params:oauth:grant-type:token-exchange', {
      subject_token: extra.authInfo.token,
      subject_token_type: 'urn:ietf:params:oauth:token-type:access_token',
      resource: API,
      scope,
      authorization_details: JSON.stringify([detail]),
    })
    return answer.access_token
  } catch (e) {
    const { interaction, url } = e.cause ?? {}
    if (interaction === 'link') throw new Error(`link your account first: ${url}`)
    if (interaction) throw new Error(`somebody has to approve this first: ${url ?? e.error_description}`)
    if (e.error && e.status < 500 && e.status !== 429) throw new Error(`refused: ${e.error}: ${e.error_description}`)
    throw new Error('not now; try again in a moment')
  }
}

async function call(token, init) {
  const resp = await fetch(API + '/orders', { ...init, headers: { authorization: 'Bearer ' + token, 'content-type': 'application/json' } })
  if (!resp.ok) throw new Error(`the API answers ${resp.status}`)
  return { content: [{ type: 'text', text: await resp.text() }] }
}

function server() {
  const mcp = new McpServer({ name: 'orders', version: '1' })
  mcp.registerTool('list_orders', { description: 'Lists all orders.', inputSchema: {} }, async (args, extra) =>
    call(await vend(extra, 'list_orders', args, 'orders:read')))
  mcp.registerTool('add_order', { description: 'Adds an order.', inputSchema: { item: z.string(), quantity: z.number() } }, async (args, extra) =>
    call(await vend(extra, 'add_order', args, 'orders:write', true), { method: 'POST', body: JSON.stringify(args) }))
  return mcp
}

const app = express()
const path = '/.well-known/oauth-protected-resource' + new URL(RESOURCE).pathname
app.get(path, (_, res) => res.json({ resource: RESOURCE, authorization_servers: [STINT], scopes_supported: ['orders:read', 'orders:write'] }))
const bearer = requireBearerAuth({ verifier: { verifyAccessToken }, resourceMetadataUrl: new URL(RESOURCE).origin + path })
app.post('/mcp', express.json(), bearer, async (req, res) => {
  const transport = new StreamableHTTPServerTransport({ sessionIdGenerator: undefined, enableJsonResponse: true })
  res.on('close', () => transport.close())
  await server().connect(transport)
  await transport.handleRequest(req, res, req.body)
})
app.listen(Number(port), host, () => console.log('ready'))
