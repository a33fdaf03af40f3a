package store

import (
	"encoding/json"
	"testing"
	"time"

	"postern/greylist"
)

// FuzzItem reads lines of exported state: what is found good can be written and
// read again, and is the same.
func FuzzItem(f *testing.F) {
	for _, it := range []Item{
		{Greylist: &greylist.Entry{Kind: greylist.KindTriplet, Match: "net:1", Sender: "a@b", Recipient: "c@d", First: time.Unix(1, 0), Last: time.Unix(2, 0), Passes: 1}},
		{Value: &Value{Space: VerifySpace, Key: "a\xff", Value: "v", Expires: time.Unix(3, 0)}},
	} {
		it.Encode()
		b, err := json.Marshal(it)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"greylist":{"kind":"credit"},"value":{}}`))
	f.Add([]byte(`{"value":{"space":"verify","key":"=","value":"x"},"base64":true}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var it Item
		if json.Unmarshal(b, &it) != nil || it.Check() != nil {
			return
		}
		var before []string
		for _, s := range it.texts() {
			before = append(before, *s)
		}
		it.Encode()
		line, err := json.Marshal(it)
		if err != nil {
			return // a time beyond the year 9999
		}
		var again Item
		if err := json.Unmarshal(line, &again); err != nil {
			t.Fatal(err)
		}
		if err := again.Check(); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		for i, s := range again.texts() {
			if *s != before[i] {
				t.Errorf("%q came back as %q", before[i], *s)
			}
		}
	})
}
