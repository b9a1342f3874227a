package api

import (
	"net"
	"sync"
	"syscall"
)

// mostConnections is how many connections strangers may hold: never so many that no
// file can be opened for anything else.
func mostConnections() int {
	const most = 10_000
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return most
	}
	return int(min(most, limit.Cur/4*3))
}

// connections is a listener of so many connections at a time; others wait until one of
// these ends. Those of the library hide that a TCP connection can close one of its
// directions, without which refused requests are not answered but reset.
type connections struct {
	net.Listener
	slots chan struct{}
	done  chan struct{}
	close func() error
}

func limitConnections(in net.Listener, most int) net.Listener {
	l := &connections{Listener: in, slots: make(chan struct{}, most), done: make(chan struct{})}
	l.close = sync.OnceValue(func() error { close(l.done); return in.Close() })
	return l
}

// Accept implements [net.Listener].
func (l *connections) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.done:
		return nil, net.ErrClosed
	}
	conn, err := l.Listener.Accept()
	tcp, ok := conn.(*net.TCPConn)
	if err != nil || !ok {
		<-l.slots
		return conn, err
	}
	return &counted{tcp, sync.OnceFunc(func() { <-l.slots })}, nil
}

// Close implements [net.Listener].
func (l *connections) Close() error { return l.close() }

// counted is a connection that has a slot.
type counted struct {
	*net.TCPConn
	free func()
}

// Close implements [net.Conn].
func (c *counted) Close() error {
	defer c.free()
	return c.TCPConn.Close()
}
