// Package store keeps state: the feed of revocations, leases, one-time ids and
// sessions. [Redis] does it for any number of replicas, [Embedded] in one file
// for a single machine; both pass the suite in storetest. [SubjectKeys] is a
// third file, for keys that can be destroyed.
//
// The package keeps what it is given and knows when it changed. It decides
// nothing, and it encrypts nothing: handles of leases come sealed.
package store

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/internal/strictjson"
)

// retention is how long a closed lease can still be read, after it was closed
// and after it ran out, whatever is later.
const retention = broker.ClosedLeaseKept

// errClosed is returned for what is asked after Close.
var errClosed = errors.New("the store is closed")

// encodeEntries returns entries as they are kept, if they are a piece of chain that can
// follow a head. What does not follow would be kept for good, and no replica could
// apply it. After the zero head any entry may come: where a whole feed is put
// back, those before were trimmed.
func encodeEntries(after broker.Head, entries []broker.Entry) ([][]byte, error) {
	if len(entries) == 0 {
		return nil, errors.New("no entries to append")
	}
	out := make([][]byte, len(entries))
	for i, e := range entries {
		if e.Pos.Seq <= after.Pos.Seq || after != (broker.Head{}) && e.Prev != after.ID {
			return nil, fmt.Errorf("entry %s does not follow %s", e.Pos, after.Pos)
		}
		out[i] = e.Encode()
		if sum := sha256.Sum256(out[i]); e.ID != broker.ChainID(sum[:16]) {
			return nil, fmt.Errorf("entry %s does not have its own id", e.Pos)
		}
		after = e.Head()
	}
	return out, nil
}

// decodeEntry reads an entry that was kept under a sequence number.
func decodeEntry(seq uint64, data []byte) (broker.Entry, error) {
	e, err := broker.DecodeEntry(data)
	if err != nil {
		return e, fmt.Errorf("entry %d: %w", seq, err)
	}
	if e.Pos.Seq != seq {
		return e, fmt.Errorf("entry %d says that it is %d", seq, e.Pos.Seq)
	}
	return e, nil
}

// encodeLease returns a lease as it is kept, with the given version.
func encodeLease(l *broker.Lease, version int) ([]byte, error) {
	if l.ID == "" || l.State == "" {
		return nil, errors.New("a lease has an id and a state")
	}
	next := *l
	next.Version = version
	return broker.EncodeLease(&next)
}

// decodeLease reads a lease that was kept under an id.
func decodeLease(id string, data []byte) (*broker.Lease, error) {
	l, err := broker.DecodeLease(data)
	if err != nil {
		return nil, fmt.Errorf("lease %s: %w", id, err)
	}
	if l.ID != id {
		return nil, fmt.Errorf("lease %s says that it is %q", id, l.ID)
	}
	return l, nil
}

// Errors of an update that no other version would make right.
var (
	errKeysChanged = errors.New("the keys of a lease do not change")
	errReopened    = errors.New("a closed lease stays closed")
)

// fileKeys returns the keys that a lease is filed under, each once, and a digest
// of them.
func fileKeys(l *broker.Lease) (keys []string, sum string) {
	keys = slices.Compact(slices.Sorted(slices.Values(l.Keys)))
	return keys, digest(keys...)
}

// digest returns the SHA-256 of texts, in base64url, such that no two lists have
// the same.
func digest(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(p)))
		h.Write(n[:])
		h.Write([]byte(p))
	}
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil))
}

// encodeReplica returns a replica as it is kept, with the end of its heartbeat.
func encodeReplica(r broker.Replica, ends time.Time) (string, error) {
	doc, err := strictjson.Encode(r)
	return strconv.FormatInt(millis(ends), 10) + " " + string(doc), err
}

// decodeReplica reads a replica, and whether its heartbeat has not ended.
func decodeReplica(id, text string, now time.Time) (r broker.Replica, live bool, err error) {
	number, doc, _ := strings.Cut(text, " ")
	ends, err := strconv.ParseInt(number, 10, 64)
	if err == nil {
		err = strictjson.DecodeKnown([]byte(doc), &r)
	}
	if err == nil && r.ID != id {
		err = fmt.Errorf("it says that it is %q", r.ID)
	}
	if err != nil {
		return r, false, fmt.Errorf("replica %s: %w", id, err)
	}
	return r, ends > millis(now), nil
}

func sortReplicas(all []broker.Replica) {
	slices.SortFunc(all, func(a, b broker.Replica) int { return strings.Compare(a.ID, b.ID) })
}

func decodeSession(data []byte) (s broker.Session, err error) {
	if err := strictjson.DecodeKnown(data, &s); err != nil {
		return s, fmt.Errorf("session: %w", err)
	}
	return s, nil
}

// newestFirst puts sessions in the order in which they are listed.
func newestFirst(all []broker.Session) {
	slices.SortFunc(all, func(a, b broker.Session) int {
		if c := b.First.Compare(a.First); c != 0 {
			return c
		}
		return strings.Compare(a.ID+"\x00"+a.Client, b.ID+"\x00"+b.Client)
	})
}

// lastMilli is the end of the year 9999.
const lastMilli = 253402300799999

// millis returns a time in Unix milliseconds, rounded down, between 1970 and
// 9999. The zero time is long past.
func millis(t time.Time) int64 {
	return min(max(t.Unix(), 0), lastMilli/1000)*1000 + int64(t.Nanosecond())/1e6
}

// nanos returns a time in Unix nanoseconds, between 1970 and 2262. The zero time
// is long past.
func nanos(t time.Time) int64 {
	if t.Unix() < 0 {
		return 0
	}
	if t.Unix() >= math.MaxInt64/1_000_000_000 {
		return math.MaxInt64
	}
	return t.UnixNano()
}
