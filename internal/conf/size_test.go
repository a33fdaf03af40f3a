package conf

import "testing"

func TestSize(t *testing.T) {
	for text, want := range map[string]Size{
		"0": 0, "512": 512, "512B": 512, "1kB": 1024, "64 MB": 64 << 20, "1.5gb": 3 << 29, "2T": 2 << 40, "1KB": 1024,
	} {
		var s Size
		if err := s.UnmarshalText([]byte(text)); err != nil || s != want {
			t.Errorf("%q: %d %v, want %d", text, s, err, want)
		}
		var again Size
		if err := again.UnmarshalText([]byte(s.String())); err != nil || again != s {
			t.Errorf("%q is written as %q, which is %d %v", text, s, again, err)
		}
	}
	for _, text := range []string{"", "B", "MB", "-1MB", "1XB", "1e9", "inf", "nan", "0x10", "9999999999TB", "1MBB"} {
		var s Size
		if err := s.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is %d", text, s)
		}
	}
}
