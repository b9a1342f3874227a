package audit

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Whichever way appends take, and wherever they change from one to the other, the
// file holds what was appended, and zeros behind it.
func TestAppendsAreTheSameEitherWay(t *testing.T) {
	for name, change := range map[string]func(d *durable, step int){
		"past the cache":           func(*durable, int) {},
		"waited for":               func(*durable, int) {},
		"through the cache":        func(d *durable, _ int) { d.release() },
		"through it from a point":  func(d *durable, step int) { releaseAt(d, step, 7) },
		"refused by the disk once": func(d *durable, step int) { misalignAt(d, step, 7) },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "segment")
			f, err := zeroed(path, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			r := rand.New(rand.NewPCG(1, 2))
			var want []byte
			q := openQueue()
			if name == "waited for" {
				q.close()
				q = nil
			}
			defer q.close()
			d := appendTo(f, path, 0, q)
			for step := range 200 {
				if step%17 == 16 { // opened anew
					if err := d.Close(); err != nil {
						t.Fatal(err)
					}
					if f, err = os.OpenFile(path, os.O_RDWR, 0); err != nil {
						t.Fatal(err)
					}
					d = appendTo(f, path, int64(len(want)), q)
				}
				change(d, step)
				n := 1 + r.IntN(900)
				switch r.IntN(20) {
				case 0:
					n = blockSize - len(want)%blockSize // to the end of a block
				case 1:
					n = 70 * blockSize / (1 + r.IntN(9)) // more than memory for it at once
				}
				data := make([]byte, min(n, 1<<20-len(want)))
				for i := range data {
					data[i] = byte(1 + r.IntN(255))
				}
				if err := d.append(data, int64(len(want))); err != nil {
					t.Fatalf("step %d: %v", step, err)
				}
				if step == 7 && strings.HasPrefix(name, "refused") && d.direct != nil {
					t.Skip("this file system takes data from anywhere")
				}
				want = append(want, data...)
				got, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if len(got) != 1<<20 || !bytes.Equal(got[:len(want)], want) || !allZero(got[len(want):]) {
					t.Fatalf("step %d, at %d: the file holds something else", step, len(want)-len(data))
				}
			}
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func releaseAt(d *durable, step, at int) {
	if step == at {
		d.release()
	}
}

// misalignAt gives the disk memory that it cannot write from.
func misalignAt(d *durable, step, at int) {
	if step != at || d.direct == nil {
		return
	}
	odd := make([]byte, len(d.block)+1)
	copy(odd[1:], d.block[:d.held])
	freeBlocks(d.block)
	d.block = odd[1:]
}
