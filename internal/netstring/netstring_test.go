package netstring

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func TestNext(t *testing.T) {
	for _, tt := range []struct {
		in, want string
		n        int
		err      error
	}{
		{"5:hello,", "hello", 8, nil},
		{"5:hello,3:abc,", "hello", 8, nil},
		{"0:,", "", 3, nil},
		{"10:0123456789,", "0123456789", 14, nil},
		{"20:" + strings.Repeat("x", 20) + ",", strings.Repeat("x", 20), 24, nil},
		{"3:a,b,", "a,b", 6, nil},
		{"2:\x00\xff,", "\x00\xff", 5, nil},
		{"", "", 0, nil},
		{"1", "", 0, nil},
		{"5:", "", 0, nil},
		{"5:hello", "", 0, nil},
		{"21", "", 0, ErrTooLong},
		{"99999999999999999999999999:", "", 0, ErrTooLong},
		{"00:,", "", 0, ErrMalformed},
		{"05:hello,", "", 0, ErrMalformed},
		{":,", "", 0, ErrMalformed},
		{",", "", 0, ErrMalformed},
		{"-1:", "", 0, ErrMalformed},
		{" 1:a,", "", 0, ErrMalformed},
		{"1 :a,", "", 0, ErrMalformed},
		{"5:hello;", "", 0, ErrMalformed},
		{"5:helloo,", "", 0, ErrMalformed},
		{"GET / HTTP/1.0\r\n", "", 0, ErrMalformed},
	} {
		got, n, err := Next([]byte(tt.in), 20)
		if string(got) != tt.want || n != tt.n || !errors.Is(err, tt.err) {
			t.Errorf("%q: %q, %d, %v; want %q, %d, %v", tt.in, got, n, err, tt.want, tt.n, tt.err)
		}
	}
}

func TestTheContentCannotGrowIntoWhatFollows(t *testing.T) {
	buf := []byte("1:a,1:b,")
	got, _, err := Next(buf, 20)
	if err != nil {
		t.Fatal(err)
	}
	_ = append(got, 'x')
	if string(buf) != "1:a,1:b," {
		t.Errorf("the buffer became %q", buf)
	}
}

// FuzzNext states: what is read is what was written; what was read is written
// the same; any beginning of a good netstring asks for more; nothing beyond
// the limit comes out.
func FuzzNext(f *testing.F) {
	for _, s := range []string{"5:hello,", "0:,rest", "00:,", "999999999999999999999:", "12:a", "3:a,b,x"} {
		f.Add([]byte(s))
	}
	const limit = 64
	f.Fuzz(func(t *testing.T, in []byte) {
		content, n, err := Next(in, limit)
		switch {
		case err != nil:
			if n != 0 || content != nil {
				t.Fatalf("%q: %q, %d with %v", in, content, n, err)
			}
			more, n, again := Next(append(bytes.Clone(in), "0123456789:,"...), limit)
			if again == nil || n != 0 || more != nil {
				t.Fatalf("%q: more bytes made it good", in)
			}
		case n > 0:
			if len(content) > limit {
				t.Fatalf("%q: %d bytes", in, len(content))
			}
			if got := Append(nil, content); !bytes.Equal(got, in[:n]) {
				t.Fatalf("%q was written as %q", in[:n], got)
			}
			for i := range n {
				if c, m, err := Next(in[:i], limit); c != nil || m != 0 || err != nil {
					t.Fatalf("%q: %q, %d, %v", in[:i], c, m, err)
				}
			}
		}
		if len(in) <= limit {
			got, n, err := Next(append(Append(nil, in), in...), limit)
			if err != nil || !bytes.Equal(got, in) || n != len(Append(nil, in)) {
				t.Fatalf("%q: %q, %d, %v", in, got, n, err)
			}
		}
	})
}
