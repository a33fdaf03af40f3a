package fdstore

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// manager receives what is sent to NOTIFY_SOCKET as systemd does.
type manager struct {
	said  []string
	files map[string]int // how many came under a name
	done  chan error
}

// receive reads messages until the one named last, and answers a barrier by
// closing its file.
func (m *manager) receive(c *net.UnixConn, last string) {
	m.files, m.done = map[string]int{}, make(chan error, 1)
	go func() {
		buf, oob := make([]byte, 4096), make([]byte, 8192)
		for {
			n, oobn, flags, _, err := c.ReadMsgUnix(buf, oob)
			if err != nil {
				m.done <- err
				return
			}
			if flags&syscall.MSG_CTRUNC != 0 {
				m.done <- errors.New("more files than a message holds")
				return
			}
			text := string(buf[:n])
			m.said = append(m.said, text)
			messages, err := syscall.ParseSocketControlMessage(oob[:oobn])
			if err != nil {
				m.done <- err
				return
			}
			for _, message := range messages {
				fds, err := syscall.ParseUnixRights(&message)
				if err != nil {
					m.done <- err
					return
				}
				_, name, _ := strings.Cut(text, "FDNAME=")
				m.files[name] += len(fds)
				for _, fd := range fds {
					_ = syscall.Close(fd)
				}
			}
			if strings.HasPrefix(text, last) {
				m.done <- nil
				return
			}
		}
	}()
}

func TestKeepAndForget(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // the end
	t.Setenv("NOTIFY_SOCKET", path)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close() //nolint:errcheck // the end
	var m manager
	m.receive(c, "BARRIER=1")
	if err := Keep("some", slices.Repeat([]*os.File{r}, 450)); err != nil {
		t.Fatal(err)
	}
	if err := <-m.done; err != nil {
		t.Fatal(err)
	}
	want := []string{"FDSTORE=1\nFDNAME=some", "FDSTORE=1\nFDNAME=some", "FDSTORE=1\nFDNAME=some", "BARRIER=1"}
	if !slices.Equal(m.said, want) || m.files["some"] != 450 {
		t.Errorf("%q %v", m.said, m.files)
	}
	m = manager{}
	m.receive(c, "FDSTOREREMOVE=1")
	if err := Forget("some"); err != nil {
		t.Fatal(err)
	}
	if err := <-m.done; err != nil || m.said[0] != "FDSTOREREMOVE=1\nFDNAME=some" {
		t.Errorf("%q %v", m.said, err)
	}
	// The files are still those of the caller.
	_ = w.Close()
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}

func TestNobodyKeeps(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := Keep("some", []*os.File{os.Stdin}); err == nil {
		t.Error("nobody has them")
	}
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "nobody"))
	if err := Forget("some"); err == nil {
		t.Error("nobody is there")
	}
}

func TestCapacity(t *testing.T) {
	for _, tt := range []struct {
		socket, store string
		want          int
	}{{"/run/notify", "8192", 8192}, {"", "8192", 0}, {"/run/notify", "", 0}, {"/run/notify", "many", 0}, {"/run/notify", "-1", 0}} {
		t.Setenv("NOTIFY_SOCKET", tt.socket)
		t.Setenv("FDSTORE", tt.store)
		if got := Capacity(); got != tt.want {
			t.Errorf("%+v: %d", tt, got)
		}
	}
}
