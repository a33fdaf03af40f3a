package list

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func BenchmarkFind100kPrefixes(b *testing.B) {
	var text strings.Builder
	for i := range 100_000 {
		fmt.Fprintf(&text, "%d.%d.%d.0/24 reject\n", 1+i>>16, i>>8&255, i&255)
	}
	path := filepath.Join(b.TempDir(), "big.list")
	if err := os.WriteFile(path, []byte(text.String()), 0o600); err != nil {
		b.Fatal(err)
	}
	set, faults := Load([]string{path}, Options{NeedAction: true, Actions: nil, Default: 3})
	if err := faults.Err(); err != nil {
		b.Fatal(err)
	}
	for name, req := range map[string]string{"listed": "1.7.9.4", "other": "192.0.2.7"} {
		b.Run(name, func(b *testing.B) {
			r := request(req, "mail.example.org", "mail.example.org", "a@example.org", "b@example.com")
			b.ReportAllocs()
			for b.Loop() {
				if (set.Find(r) != nil) != (name == "listed") {
					b.Fatal("wrong answer")
				}
			}
		})
	}
}
