package milter

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	gomilter "github.com/d--j/go-milter"
	"go.uber.org/zap"

	"postern/internal/door"
	"postern/internal/listen"
)

// Postfix opens a milter session when a client connects, and never again while
// the client stays: a session that ends before costs each of the client's
// further messages milter_default_action. So sessions outlive the process. When
// it ends, a session between two packets is given up without closing its
// connection; what the MTA has said of the SMTP session goes with it into a
// file. The next process hears that again as if the MTA said it, and says
// nothing.

// keptVersion is that of the file's form.
const keptVersion = 1

// kept are the sessions that the next process takes over, as a file has them.
type kept struct {
	Version  int           `json:"version"`
	Sessions []keptSession `json:"sessions"`
}

// keptSession is one of them.
type keptSession struct {
	Inode   uint64 `json:"inode"`   // of the connection's socket
	Address string `json:"address"` // of the door, as written
	// Agreed is what has been negotiated, Said what the MTA has said since, and
	// both are empty when nothing has come yet.
	Agreed agreement `json:"agreed"`
	Said   []byte    `json:"said"`
	// Message is set when a message is under way. What has been found about it
	// is lost, so that it has to come again.
	Message bool `json:"message"`

	file *os.File
	told func() // the session is here; may be called more than once
}

// agreement is the outcome of a negotiation.
type agreement struct {
	Version uint32               `json:"version"`
	Actions gomilter.OptAction   `json:"actions"`
	Steps   gomilter.OptProtocol `json:"steps"`
}

// saying is what an MTA has said of an SMTP session, as packets.
type saying struct {
	agreed                                      agreement
	offer, connectMacros, connect, macros, helo []byte
}

// tellingTime is how long Resume waits for the sessions to have heard their
// past.
const tellingTime = 5 * time.Second

// maxSaid is the most bytes of it that are kept.
const maxSaid = 128 << 10

// note takes a packet.
func (s *saying) note(p []byte) {
	keep := func(to *[]byte) { *to = append((*to)[:0], p...) }
	switch code := p[prefixLength]; code {
	case codeOptions:
		keep(&s.offer)
	case codeConnect:
		keep(&s.connect)
	case codeHelo:
		keep(&s.helo)
	case codeMacros:
		switch p[prefixLength+1] {
		case codeConnect:
			keep(&s.connectMacros)
		case codeHelo:
			keep(&s.macros)
		}
	case codeQuitNew:
		s.connect, s.connectMacros, s.macros, s.helo = nil, nil, nil, nil
	}
}

// bytes returns it in the order in which it was said.
func (s *saying) bytes() []byte {
	var b []byte
	for _, p := range [][]byte{s.offer, s.connectMacros, s.connect, s.macros, s.helo} {
		b = append(b, p...)
	}
	return b
}

// The commands by which the guard of a session that goes on says that its
// past has been told. No MTA sends any: it is asked not to.
const (
	pastTold     = "postern: go on"
	pastToldLost = "postern: go on, the message is lost"
)

// past returns the packets with which a session goes on.
func (k *keptSession) past() []byte {
	told := pastTold
	if k.Message {
		told = pastToldLost
	}
	b := append([]byte(nil), k.Said...)
	b = append(b, 0, 0, 0, byte(len(told)+2), codeUnknown)
	return append(append(b, told...), 0)
}

// release has a connection given up as soon as it is between two packets: with
// last even when a message is under way.
func (s *Server) release(dc *door.Conn, last bool) bool {
	s.mu.Lock()
	c := s.conns[dc]
	s.mu.Unlock()
	if c == nil {
		return true // it begins just now
	}
	if last {
		c.giveUpMessage.Store(true)
	}
	c.giveUp.Store(true)
	return dc.Interrupt() == nil
}

// givenUp notes a connection for the next process. It is called by the
// session's goroutine, to which everything has been told that has arrived.
func (s *Server) givenUp(c *conn) error {
	said := c.said.bytes()
	if len(said) > maxSaid {
		return errors.New("the session is too large to be kept")
	}
	f, err := c.door.File()
	if err != nil {
		return err
	}
	inode, err := inodeOf(f)
	if err != nil {
		_ = f.Close() // the session ends here
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keeping = append(s.keeping, keptSession{
		Inode: inode, Address: c.door.Address.String(), Agreed: c.said.agreed, Said: said, Message: c.message.Load(), file: f,
	})
	return nil
}

// keep hands the sessions that were given up to the next process.
func (s *Server) keep() error {
	s.mu.Lock()
	sessions := s.keeping
	s.keeping = nil
	s.mu.Unlock()
	if len(sessions) == 0 {
		return nil
	}
	files := make([]*os.File, len(sessions))
	for i := range sessions {
		files[i] = sessions[i].file
		defer files[i].Close() //nolint:errcheck // the next process has it
	}
	f, err := keptFile(kept{keptVersion, sessions})
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // as above
	if err := s.o.Keep(append(files, f)); err != nil {
		return err
	}
	s.log.Info("sessions are kept for the next process", zap.Int("sessions", len(sessions)))
	return nil
}

// keptFile writes a file that has no name.
func keptFile(k kept) (*os.File, error) {
	f, err := os.CreateTemp("", "postern-milter")
	if err != nil {
		return nil, err
	}
	err = errors.Join(os.Remove(f.Name()), json.NewEncoder(f).Encode(k))
	if err != nil {
		_ = f.Close() // err is what matters
		return nil, err
	}
	return f, nil
}

// Resume goes on with the sessions that an earlier process has kept, in files
// that it takes over. It is called after Configure.
func (s *Server) Resume(files []*os.File) error {
	if len(files) == 0 {
		return nil
	}
	byInode := make(map[uint64]*os.File, len(files))
	var k kept
	var errs []error
	for _, f := range files {
		defer f.Close() //nolint:errcheck // connections are copies
		st, err := f.Stat()
		switch {
		case err != nil:
			errs = append(errs, err)
		case st.Mode().IsRegular():
			errs = append(errs, k.read(f))
		default:
			if inode, err := inodeOf(f); err == nil {
				byInode[inode] = f
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("milter: kept sessions: %w", err)
	}
	resumed := 0
	var all sync.WaitGroup
	for i := range k.Sessions {
		session := &k.Sessions[i]
		f := byInode[session.Inode]
		if f == nil {
			continue // the MTA has closed it meanwhile, or it did not fit
		}
		all.Add(1)
		session.told = sync.OnceFunc(all.Done)
		if err := s.resume(session, f); err != nil {
			session.told()
			errs = append(errs, err)
			continue
		}
		resumed++
	}
	// Each should be known to the policy door before that opens.
	known := make(chan struct{})
	go func() {
		all.Wait()
		close(known)
	}()
	select {
	case <-known:
	case <-time.After(tellingTime):
	}
	s.log.Info("sessions go on", zap.Int("sessions", resumed))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("milter: kept sessions: %w", err)
	}
	return nil
}

func (k *kept) read(f *os.File) error {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if err := json.NewDecoder(f).Decode(k); err != nil {
		return err
	}
	if k.Version != keptVersion {
		k.Sessions = nil
		return fmt.Errorf("version %d", k.Version)
	}
	return nil
}

// whole reports whether what was said is whole packets of the kinds that are
// kept.
func (k *keptSession) whole() bool {
	for b := k.Said; len(b) > 0; {
		if len(b) <= prefixLength {
			return false
		}
		n := uint64(binary.BigEndian.Uint32(b))
		switch code := b[prefixLength]; {
		case n == 0 || n > uint64(len(b)-prefixLength):
			return false
		case code == codeMacros && n > 1, code == codeOptions, code == codeConnect, code == codeHelo:
		default:
			return false
		}
		b = b[prefixLength+int(n):]
	}
	return true
}

func (s *Server) resume(k *keptSession, f *os.File) error {
	if !k.whole() {
		return errors.New("what was said in a session is damaged")
	}
	var a listen.Address
	if err := a.UnmarshalText([]byte(k.Address)); err != nil {
		return err
	}
	nc, err := net.FileConn(f)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.resuming[nc] = k
	s.mu.Unlock()
	if !s.door.Adopt(&a, nc) {
		s.mu.Lock()
		delete(s.resuming, nc)
		s.mu.Unlock()
		return errors.New("a session could not be taken over")
	}
	return nil
}

func inodeOf(f *os.File) (uint64, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var st syscall.Stat_t
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = syscall.Fstat(int(fd), &st) }); err != nil {
		return 0, err
	}
	return st.Ino, failed
}
