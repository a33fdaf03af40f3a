package bolt

import (
	"bytes"
	"testing"

	"postern/store/overlay"
)

// FuzzRecord reads what the file may hold: what can be read is written as it
// was.
func FuzzRecord(f *testing.F) {
	f.Add(encode(nil, &overlay.Record{A: 1, B: 2, X: 3, Y: 4, Expires: 5}))
	f.Add(encode(nil, &overlay.Record{A: 1, B: 2, C: 9, X: 3, Expires: 5}))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, v []byte) {
		rec, ok := decode(v)
		if !ok {
			return
		}
		if again := encode(nil, &rec); !bytes.HasPrefix(v, again) {
			t.Errorf("%x came back as %x", v, again)
		}
	})
}
