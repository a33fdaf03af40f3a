package milter

import (
	"encoding/json"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	gomilter "github.com/d--j/go-milter"
	"go.uber.org/zap"
)

// FuzzKept takes over a session of which a file says anything at all: it goes on
// or ends, and the door goes on.
func FuzzKept(f *testing.F) {
	f.Add(aSession(), uint32(6), uint32(0x1ff), uint32(0x1fffff), true, false)
	f.Add([]byte{}, uint32(0), uint32(0), uint32(0), false, false)
	f.Add([]byte("\x00\x00\x00\x01Q"), uint32(2), uint32(1), uint32(1), false, true)
	f.Fuzz(func(t *testing.T, said []byte, version, actions, steps uint32, lost, cut bool) {
		s, addr := start(t, &handler{}, func(_ *Config, o *Options) { o.Log = zap.NewNop() })
		pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
		if err != nil {
			t.Fatal(err)
		}
		ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
		inode, err := inodeOf(theirs)
		if err != nil {
			t.Fatal(err)
		}
		k := kept{keptVersion, []keptSession{{Inode: inode, Address: "unix:" + addr.String(), Said: said, Message: lost}}}
		k.Sessions[0].Agreed.Version = version
		k.Sessions[0].Agreed.Actions, k.Sessions[0].Agreed.Steps = gomilter.OptAction(actions), gomilter.OptProtocol(steps)
		text, err := json.Marshal(k)
		if err != nil {
			t.Fatal(err)
		}
		if cut {
			text = text[:len(text)/2]
		}
		file, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := file.Write(text); err != nil {
			t.Fatal(err)
		}
		c, err := net.FileConn(ours)
		if err != nil {
			t.Fatal(err)
		}
		_ = ours.Close()
		_ = s.Resume([]*os.File{theirs, file}) // it may not like it
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		_, _ = c.Write(packet(codeQuit, "")) // it may be closed
		b := make([]byte, 1024)
		for err == nil {
			_, err = c.Read(b)
		}
		if os.IsTimeout(err) {
			t.Error("neither goes on nor ends")
		}
		_ = c.Close()
		m := dial(t, addr).open()
		if _, final := m.content(someHeader, "x"); final != "a" {
			t.Errorf("another session: %q", final)
		}
	})
}
