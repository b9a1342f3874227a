package sample

// What tests ask the servers of themselves.

// URL is where it is: http://127.0.0.1:PORT.
func (a *API) URL() string { return a.base }

// Resource is what tokens for it name as their audience.
func (a *API) Resource() string { return a.resource }

// URL is where it is: http://127.0.0.1:PORT/mcp.
func (s *MCPServer) URL() string { return s.base + mcpPath }

// Resource is what tokens for it name as their audience.
func (s *MCPServer) Resource() string { return s.cfg.Resource }

// Port is where it listens.
func (w *Warehouse) Port() int { return w.cfg.Port }
