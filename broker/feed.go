package broker

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/stint-dev/stint/internal/strictjson"
)

// Position is a place in the revocation feed. A token carries the position that
// the replica which made it had reached: it is older than every record behind.
// Positions of different epochs do not compare: an epoch begins when what came
// before it was lost, and everything made before is dead.
type Position struct {
	Epoch uint64 // when the chain began, in Unix milliseconds
	Seq   uint64 // rises along the chain, with gaps
}

func (p Position) String() string {
	return strconv.FormatUint(p.Epoch, 10) + "." + strconv.FormatUint(p.Seq, 10)
}

// ParsePosition reads what [Position.String] wrote.
func ParsePosition(s string) (Position, error) {
	epoch, seq, ok := strings.Cut(s, ".")
	e, err1 := strconv.ParseUint(epoch, 10, 64)
	q, err2 := strconv.ParseUint(seq, 10, 64)
	p := Position{e, q}
	if !ok || err1 != nil || err2 != nil || p.String() != s {
		return Position{}, fmt.Errorf("%q is no feed position", s)
	}
	return p, nil
}

// Kind is what a condition of a revocation selects by.
type Kind uint8

// The kinds, rarest first: a record with several conditions is filed under the
// first of them. Their numbers and letters are part of the feed's format.
const (
	ByToken Kind = iota + 1
	ByLease
	BySession
	BySubject
	ByPolicy // a version of a mapping
	ByTool
	ByScope
	ByAgent
	ByClient
	ByKey // of ours, that signed a token
	ByResource
	ByIssuer // of a foreign token
	ByProvider
	ByEverything
	kinds // how many, plus one
)

// kindNames are the names of the kinds in selectors, and kindLetters in the feed.
var (
	kindNames   = [kinds]string{"", "token", "lease", "session", "subject", "policy", "tool", "scope", "agent", "client", "key", "resource", "issuer", "provider", "everything"}
	kindLetters = [kinds]string{"", "t", "l", "s", "u", "p", "o", "c", "a", "k", "y", "r", "i", "v", "e"}
)

func (k Kind) String() string {
	if k >= kinds {
		return "unknown"
	}
	return kindNames[k]
}

// forever reports whether a record of the kind takes what was made after it as well.
// A session is one login: once revoked it stays so, whatever is made in it. A key
// that was withdrawn signs whatever somebody else wants, with any position.
func (k Kind) forever() bool { return k == BySession || k == ByKey }

// Key is one condition: a kind and the digest of a value. The value itself, be
// it a person's name, is in no feed.
type Key struct {
	Kind   Kind
	Digest [16]byte
}

// KeyOf returns the key of a value; values of several parts cannot be confused
// with others.
func KeyOf(kind Kind, parts ...string) Key {
	var buf [256]byte
	b := append(buf[:0], byte(kind))
	for _, p := range parts {
		b = binary.BigEndian.AppendUint32(b, uint32(len(p)))
		b = append(b, p...)
	}
	sum := sha256.Sum256(b)
	return Key{kind, [16]byte(sum[:16])}
}

// String returns the key as the feed writes it: letter, colon, base64url.
func (k Key) String() string {
	return kindLetters[k.Kind] + ":" + base64.RawURLEncoding.EncodeToString(k.Digest[:])
}

// parseKey reads what [Key.String] wrote.
func parseKey(s string) (Key, error) {
	letter, text, _ := strings.Cut(s, ":")
	for kind := ByToken; kind < kinds; kind++ {
		if kindLetters[kind] == letter {
			d, err := base64.RawURLEncoding.DecodeString(text)
			if k := (Key{Kind: kind}); err == nil && len(d) == len(k.Digest) {
				copy(k.Digest[:], d)
				return k, nil
			}
		}
	}
	return Key{}, fmt.Errorf("%q is no key", s)
}

// Record is one revocation: everything that meets all conditions and was made
// before it is dead. Without conditions it selects nothing.
type Record struct {
	Where []Key
	// At is when it was made, by the store's clock, in whole seconds.
	At time.Time
	// Expires is when nothing that it could select is alive any more.
	Expires time.Time
	// Until, if set, freezes new grants that meet the conditions until then.
	Until time.Time
}

// ChainID identifies an entry and, through it, all before.
type ChainID [16]byte

// Entry is a record in its place in the feed.
type Entry struct {
	Record
	Pos  Position
	Prev ChainID // of the entry before, whatever its sequence number
	ID   ChainID
}

// marksLoss reports whether an entry says that the store lost data: it begins a new
// epoch, or selects nothing and is kept all the same. The first entry of all does not.
func (e *Entry) marksLoss() bool {
	return len(e.Where) == 0 && e.Expires.After(e.At) || len(e.Where) == 1 && e.Where[0].Kind == ByEverything
}

// Head is the end of a chain.
type Head struct {
	Pos Position
	ID  ChainID
}

// Head returns the chain's end after the entry.
func (e Entry) Head() Head { return Head{e.Pos, e.ID} }

// feedVersion is the version of entries.
const feedVersion = 1

// entryWire is the format of an entry in the feed.
type entryWire struct {
	Version int      `json:"v"`
	Epoch   uint64   `json:"e"`
	Seq     uint64   `json:"s"`
	Prev    string   `json:"p"`
	Where   []string `json:"w"`
	At      int64    `json:"at"`
	Expires int64    `json:"x"`
	Until   int64    `json:"u,omitempty"`
}

// Follow returns r as the entry that follows h with the given sequence number.
func (h Head) Follow(r Record, pos Position) Entry {
	e := Entry{Record: r, Pos: pos, Prev: h.ID}
	sum := sha256.Sum256(e.Encode())
	e.ID = ChainID(sum[:16])
	return e
}

// Encode returns the entry as the feed and the journal keep it. Its id is the
// beginning of the SHA-256 of that, and so not among it.
func (e Entry) Encode() []byte {
	w := entryWire{
		Version: feedVersion, Epoch: e.Pos.Epoch, Seq: e.Pos.Seq, Prev: base64.RawURLEncoding.EncodeToString(e.Prev[:]),
		Where: make([]string, len(e.Where)), At: e.At.Unix(), Expires: e.Expires.Unix(),
	}
	for i, k := range e.Where {
		w.Where[i] = k.String()
	}
	if !e.Until.IsZero() {
		w.Until = e.Until.Unix()
	}
	data, err := json.Marshal(w)
	if err != nil {
		panic("encode feed entry: " + err.Error()) // numbers and ASCII: cannot be
	}
	return data
}

// maxConditions bounds the conditions of one record.
const maxConditions = 8

// DecodeEntry reads what [Entry.Encode] wrote. An entry is read as a whole or not at
// all: a revocation of which a part is passed over may take less than it says. Errors:
// ErrLater, for an entry of a later version.
func DecodeEntry(data []byte) (Entry, error) {
	var w entryWire
	if err := strictjson.Decode(data, &w); err != nil || w.Version > feedVersion {
		if v, later := strictjson.Later(data, "v", feedVersion); later {
			return Entry{}, fmt.Errorf("feed entry of version %d: %w", v, ErrLater)
		}
		return Entry{}, fmt.Errorf("feed entry: %w", err)
	}
	if w.Version != feedVersion || len(w.Where) > maxConditions {
		return Entry{}, fmt.Errorf("feed entry of version %d with %d conditions: not of this version", w.Version, len(w.Where))
	}
	prev, err := base64.RawURLEncoding.DecodeString(w.Prev)
	if err != nil || len(prev) != len(ChainID{}) {
		return Entry{}, errors.New("feed entry: no id of the entry before")
	}
	e := Entry{
		Record: Record{At: time.Unix(w.At, 0), Expires: time.Unix(w.Expires, 0)},
		Pos:    Position{w.Epoch, w.Seq}, Prev: ChainID(prev),
	}
	for _, s := range w.Where {
		k, err := parseKey(s)
		if err != nil {
			return Entry{}, fmt.Errorf("feed entry: %w", err)
		}
		e.Where = append(e.Where, k)
	}
	if w.Until != 0 {
		e.Until = time.Unix(w.Until, 0)
	}
	sum := sha256.Sum256(data)
	e.ID = ChainID(sum[:16])
	return e, nil
}

// Beat is what the store answered to a heartbeat.
type Beat struct {
	// Now is the store's clock.
	Now time.Time
	// Head is the end of the feed after the heartbeat was written; zero: no feed.
	Head Head
	// Replicas are those whose heartbeats have not run out, this one included.
	Replicas []Replica
}

// Replica is a process that serves tokens from this feed.
type Replica struct {
	ID string `json:"id"`
	// Applied is how far it has applied the feed.
	Applied Position `json:"applied"`
	// Since is when it joined, in Unix seconds.
	Since int64 `json:"since"`
}

// Feed is the durable list of revocations, in order. Implementations keep the
// bytes of entries as they are.
type Feed interface {
	// Append adds entries if the feed ends at after (zero: is empty), all or none,
	// and returns when they are durable by the store's own measure (replicas
	// included). ErrConflict says that the feed ends elsewhere. After another
	// error the entries may have been added.
	Append(ctx context.Context, after Head, entries ...Entry) error
	// Read returns at most limit entries behind a sequence number, oldest first.
	// If there are none it waits for some, at most wait.
	Read(ctx context.Context, after uint64, limit int, wait time.Duration) ([]Entry, error)
	// Trim drops entries up to and with a sequence number. The newest entry stays.
	Trim(ctx context.Context, upto uint64) error
	// Beat writes this replica's heartbeat, confirms that the write is durable by
	// the store's own measure, and then reads clock, head and replicas. An error,
	// or an unconfirmed write, means that nothing is known.
	Beat(ctx context.Context, r Replica, life time.Duration) (Beat, error)
	// Leave removes this replica's heartbeat.
	Leave(ctx context.Context, id string) error
}

// Anchor remembers, outside the store, where the feed was, so that a store that
// lost entries is found out.
type Anchor interface {
	// LoadHead returns the newest head that was saved; zero if none ever was.
	LoadHead(ctx context.Context) (Head, error)
	// SaveHead remembers a head. It may take a moment; the feed does not wait.
	SaveHead(ctx context.Context, h Head) error
}
