package api

// PartyID is how paths name an issuer or mapping.
var PartyID = partyID

// AdminScopes are the scopes that operations need.
var AdminScopes = adminScopes
