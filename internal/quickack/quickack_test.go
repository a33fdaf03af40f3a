package quickack

import (
	"io"
	"net"
	"testing"

	"postern/internal/netns"
)

// stalls counts the acknowledgements that the kernel held back until its timer
// went off, while a peer sends pieces that nobody answers.
func stalls(t *testing.T, wrap func(net.Conn) net.Conn) int {
	ns := netns.Enter(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // a test
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if err := client.(*net.TCPConn).SetNoDelay(false); err != nil {
		t.Fatal(err)
	}
	server = wrap(server)
	before := ns.DelayedACKs()
	const rounds, pieces = 20, 5
	done := make(chan error, 1)
	go func() {
		defer client.Close() //nolint:errcheck // a test
		answer := make([]byte, 1)
		for range rounds {
			for range pieces {
				if _, err := client.Write([]byte("piece")); err != nil {
					done <- err
					return
				}
			}
			if _, err := io.ReadFull(client, answer); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	b := make([]byte, 5)
	for range rounds {
		for range pieces {
			if _, err := io.ReadFull(server, b); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := server.Write([]byte{'.'}); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	n := ns.DelayedACKs() - before
	_ = server.Close() // a test
	return n
}

func TestNoStalls(t *testing.T) {
	plain := stalls(t, func(c net.Conn) net.Conn { return c })
	if plain < 5 {
		t.Fatalf("only %d stalls without it: this test sees nothing", plain)
	}
	if n := stalls(t, Wrap); n > plain/4 {
		t.Errorf("%d stalls, %d without it", n, plain)
	}
}

func TestOnlyTCP(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close() //nolint:errcheck // a test
	defer b.Close() //nolint:errcheck // a test
	if Of(a) != nil || Wrap(a) != a {
		t.Error("a pipe is taken for TCP")
	}
	Of(a).Now()
}
