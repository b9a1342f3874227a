package outbound

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Every way that leads inside, as a stranger could write it in a document that one
// of our issuers publishes. docs/attacks.md says where these come from.
func TestAttackAddressesThatLeadInside(t *testing.T) {
	dialled := 0
	d := &dialer{policy: Policy{Hosts: []string{"idp.example"}, Public: true}, dial: func(context.Context, string, string) (net.Conn, error) {
		dialled++
		return nil, errors.New("not in this test")
	}}
	client := New(Policy{Hosts: []string{"idp.example"}, Public: true})
	client.Transport.(*http.Transport).DialContext = d.dialContext
	for name, url := range map[string]string{
		"the metadata of a cloud":          "http://169.254.169.254/latest/meta-data/",
		"the same, mapped":                 "http://[::ffff:169.254.169.254]/",
		"the same, mapped in hexadecimal":  "http://[::ffff:a9fe:a9fe]/",
		"the same, by NAT64":               "http://[64:ff9b::169.254.169.254]/", // CVE-2026-54450
		"the same, by a local NAT64":       "http://[64:ff9b:1::a9fe:a9fe]/",
		"the same, by 6to4":                "http://[2002:a9fe:a9fe::]/",
		"the same, translated":             "http://[::ffff:0:169.254.169.254]/",
		"the same, compatible":             "http://[::169.254.169.254]/",
		"loopback":                         "http://127.0.0.1/",
		"another loopback":                 "http://127.255.255.254/",
		"loopback of IPv6":                 "http://[::1]/",
		"loopback, written out":            "http://[0:0:0:0:0:0:0:1]/",
		"any address":                      "http://0.0.0.0/",
		"any address of IPv6":              "http://[::]/",
		"a private network":                "http://10.0.0.1/",
		"another private network":          "http://172.31.255.255/",
		"a home":                           "http://192.168.0.1/",
		"a carrier's network":              "http://100.64.0.1/",
		"a unique local address":           "http://[fd00::1]/",
		"a link-local address":             "http://[fe80::1]/",
		"a link-local address with a zone": "http://[fe80::1%25lo]/",
		"a site-local address":             "http://[fec0::1]/",
		"everybody":                        "http://255.255.255.255/",
		"a group":                          "http://224.0.0.1/",
		"a group of IPv6":                  "http://[ff02::1]/",
		"a name of loopback":               "http://localhost/",
		"with a user before":               "http://idp.example@127.0.0.1/",
		"with a user and a password":       "http://idp.example:443@127.0.0.1/",
		"at another port":                  "http://127.0.0.1:6379/",
		"a name that begins as a good one": "http://127.0.0.1/idp.example",
	} {
		if err := get(client, url); !errors.Is(err, ErrAddress) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Spellings that some readers take for 127.0.0.1 are to us no address, and no
	// name that there is.
	for _, host := range []string{"127.1", "0x7f.1", "0x7f000001", "2130706433", "0177.0.0.1", "127.0.0.1.", "①②⑦.⓪.⓪.①", "127。0。0。1", "%31%32%37.0.0.1"} {
		if err := get(client, "http://"+host+"/"); err == nil {
			t.Errorf("%s was asked", host)
		}
	}
	for _, url := range []string{"file:///etc/passwd", "gopher://127.0.0.1/", "ftp://127.0.0.1/", "//127.0.0.1/", "http:///", "unix:///run/x"} {
		if err := get(client, url); err == nil {
			t.Errorf("%s was asked", url)
		}
	}
	if dialled != 0 {
		t.Errorf("%d connections were made", dialled)
	}
}

// rebinding answers each question for a name with the next of some addresses.
type rebinding struct {
	mu      sync.Mutex
	answers []netip.Addr
	asked   atomic.Int32
}

// serve answers questions for A records; others have no answer.
func (r *rebinding) serve(conn net.PacketConn) {
	buf := make([]byte, 512)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		q := buf[:n]
		end := 12
		for end < n && q[end] != 0 {
			end += int(q[end]) + 1
		}
		end += 5 // the name's end, type and class
		if end > n {
			continue
		}
		out := append([]byte{}, q[:end]...)
		out[2], out[3] = 0x81, 0x80 // an answer, recursion available
		binary.BigEndian.PutUint16(out[6:], 0)
		binary.BigEndian.PutUint32(out[8:], 0)
		if binary.BigEndian.Uint16(q[end-4:]) == 1 { // A
			r.mu.Lock()
			a := r.answers[min(int(r.asked.Add(1))-1, len(r.answers)-1)].As4()
			r.mu.Unlock()
			binary.BigEndian.PutUint16(out[6:], 1)
			out = append(out, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4)
			out = append(out, a[:]...)
		}
		_, _ = conn.WriteTo(out, from)
	}
}

// A name that shows a public address when it is looked at, and leads inside when it
// is connected to, leads to where it was looked at: it is resolved once.
func TestAttackDNSRebinding(t *testing.T) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	names := &rebinding{answers: []netip.Addr{netip.MustParseAddr("8.8.8.8"), netip.MustParseAddr("127.0.0.1")}}
	go names.serve(conn)
	old := net.DefaultResolver
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
	defer func() { net.DefaultResolver = old }()

	var dialled []string
	d := &dialer{policy: Policy{Public: true}, dial: func(_ context.Context, _, address string) (net.Conn, error) {
		dialled = append(dialled, address)
		return nil, errors.New("not in this test")
	}}
	if _, err := d.dialContext(context.Background(), "tcp", "rebind.example.:443"); err == nil || errors.Is(err, ErrAddress) {
		t.Errorf("while it is public: %v", err)
	}
	if names.asked.Load() != 1 || len(dialled) != 1 || dialled[0] != "8.8.8.8:443" {
		t.Errorf("asked %d times, connected to %q", names.asked.Load(), dialled)
	}
	if _, err := d.dialContext(context.Background(), "tcp", "rebind.example.:443"); !errors.Is(err, ErrAddress) {
		t.Errorf("when it leads inside: %v", err)
	}
	if len(dialled) != 1 {
		t.Errorf("connected to %q", dialled)
	}
}

// A redirect is an answer, wherever it leads.
func TestAttackRedirectInside(t *testing.T) {
	inside := 0
	target := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { inside++ }))
	defer target.Close()
	for _, status := range []int{301, 302, 303, 307, 308} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, target.URL, status) }))
		req, err := http.NewRequest(http.MethodGet, s.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer x")
		resp, err := New(Policy{Hosts: []string{"127.0.0.1"}}).Do(req)
		if err != nil || resp.StatusCode != status || !strings.HasPrefix(resp.Header.Get("Location"), target.URL) {
			t.Errorf("%d: %v, %v", status, resp, err)
		}
		s.Close()
	}
	if inside != 0 {
		t.Errorf("%d redirects were followed", inside)
	}
}

// ZITADEL: a list of forbidden addresses that other spellings of them, and names that
// lead to them, got around.
func TestAdvisory_CVE_2026_55671_ZITADEL(t *testing.T) {
	for name, spelt := range map[string][]string{
		"loopback": {"127.0.0.1", "127.0.0.2", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]", "0.0.0.0", "[::]", "localhost"},
		"metadata": {"169.254.169.254", "[::ffff:169.254.169.254]", "[64:ff9b::a9fe:a9fe]", "[2002:a9fe:a9fe::]"},
		"private":  {"10.0.0.1", "[::ffff:10.0.0.1]", "[fd00::1]", "[fe80::1]"},
	} {
		for _, host := range spelt {
			client := New(Policy{Hosts: []string{"idp.example"}, Public: true})
			if err := get(client, "https://"+host+"/"); !errors.Is(err, ErrAddress) {
				t.Errorf("%s, as %s: %v", name, host, err)
			}
		}
	}
}
