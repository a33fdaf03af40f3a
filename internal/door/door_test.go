package door

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"postern/internal/listen"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve answers each byte with one. "w" waits for the context, "h" hangs until
// the connection is closed.
func serve(c *Conn) {
	var b [1]byte
	for {
		c.Enter(Waiting, time.Now())
		if _, err := c.Read(b[:]); err != nil {
			return
		}
		c.Enter(Answering, time.Now())
		switch b[0] {
		case 'w':
			<-c.Context().Done()
			if !c.Late() {
				b[0] = '!'
			}
		case 'h':
			_, _ = io.Copy(io.Discard, c) // until it is closed
			return
		case 'r':
			c.Enter(Reading, time.Now())
			_, _ = io.Copy(io.Discard, c) // as above
			return
		}
		c.Enter(Writing, time.Now())
		if _, err := c.Write(b[:]); err != nil {
			return
		}
	}
}

func address(t *testing.T, text string) listen.Address {
	t.Helper()
	var a listen.Address
	if err := a.UnmarshalText([]byte(text)); err != nil {
		t.Fatal(err)
	}
	return a
}

func newDoor(t *testing.T, reconnects bool) *Door {
	t.Helper()
	d := New(Options{Name: "test", Section: "test", Serve: serve, Reconnects: reconnects}, zap.NewNop(), prometheus.NewRegistry())
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = d.Stop(ctx) // some tests leave connections open
	})
	return d
}

func dial(t *testing.T, path string) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() }) // it may be closed
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

// ask returns the answer to a byte, "" when the connection ends instead.
func ask(c net.Conn, b string) string {
	if _, err := c.Write([]byte(b)); err != nil {
		return ""
	}
	var out [1]byte
	if _, err := io.ReadFull(c, out[:]); err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			return "timeout"
		}
		return ""
	}
	return string(out[:])
}

func TestAddressesComeAndGo(t *testing.T) {
	dir := t.TempDir()
	one, two := filepath.Join(dir, "1"), filepath.Join(dir, "2")
	d := newDoor(t, false)
	limits := Limits{Connections: 10, Idle: time.Minute}
	if err := d.Configure([]listen.Address{address(t, "unix:"+one), address(t, "unix:"+one)}, limits, nil); err != nil {
		t.Fatal(err)
	}
	c := dial(t, one)
	if got := ask(c, "a"); got != "a" {
		t.Errorf("%q", got)
	}
	// One that cannot be opened changes nothing.
	err := d.Configure([]listen.Address{address(t, "unix:"+two), address(t, "unix:"+dir+"/no/such")}, Limits{Connections: 1}, nil)
	if err == nil || d.Limits().Connections != 10 {
		t.Errorf("%v, %+v", err, d.Limits())
	}
	if got := ask(dial(t, one), "b"); got != "b" {
		t.Errorf("%q", got)
	}
	if _, err := net.Dial("unix", two); err == nil {
		t.Error("the second address is open")
	}
	// Options alone can change, and connections stay when their address goes.
	if err := d.Configure([]listen.Address{address(t, "unix:"+two), address(t, "unix:"+one+",mode=0600")}, limits, nil); err != nil {
		t.Fatal(err)
	}
	if open, n := d.Status(); len(open) != 2 || open[1] != "unix:"+one+",mode=0600" || n != 2 {
		t.Errorf("%v, %d", open, n)
	}
	if err := d.Configure([]listen.Address{address(t, "unix:"+two)}, limits, nil); err != nil {
		t.Fatal(err)
	}
	if got := ask(c, "c"); got != "c" {
		t.Errorf("%q", got)
	}
	if _, err := net.Dial("unix", one); err == nil {
		t.Error("the first address is still open")
	}
	if got := d.Addresses(); len(got) != 1 || got[0].String() != two {
		t.Errorf("%v", got)
	}
	if err := d.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if err := d.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if err := d.Configure(nil, limits, nil); err == nil {
		t.Error("configured after the end")
	}
	if got := testutil.ToFloat64(d.open); got != 0 {
		t.Errorf("%v connections counted", got)
	}
}

func TestTooManyConnections(t *testing.T) {
	for _, reconnects := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "s")
		d := newDoor(t, reconnects)
		if err := d.Configure([]listen.Address{address(t, "unix:"+path)}, Limits{Connections: 2}, nil); err != nil {
			t.Fatal(err)
		}
		oldest, other := dial(t, path), dial(t, path)
		ask(oldest, "a")
		ask(other, "a")
		if got := ask(dial(t, path), "a"); got != "" {
			t.Errorf("reconnects %v: a third one was served at once", reconnects)
		}
		d.mu.Lock()
		for c := range d.conns { // as if they had been idle
			c.since.Store(c.since.Load() - int64(2*spare))
		}
		d.mu.Unlock()
		ask(other, "a") // no longer
		want := ""
		if reconnects {
			want = "b"
		}
		if got := ask(dial(t, path), "b"); got != want {
			t.Errorf("reconnects %v: the third got %q", reconnects, got)
		}
		if got := ask(other, "a"); got != "a" {
			t.Errorf("reconnects %v: the busier one was closed", reconnects)
		}
		if got := ask(oldest, "a"); (got == "") != reconnects {
			t.Errorf("reconnects %v: the idle one got %q", reconnects, got)
		}
		if refused := testutil.ToFloat64(d.refused); refused < 1 {
			t.Errorf("%v refused", refused)
		}
	}
}

func TestWhatTakesTooLongEnds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	d := newDoor(t, false)
	limit := 100 * time.Millisecond
	if err := d.Configure([]listen.Address{address(t, "unix:"+path)}, Limits{Connections: 10, Request: limit, Answer: limit, Write: limit}, nil); err != nil {
		t.Fatal(err)
	}
	idle := dial(t, path)
	ask(idle, "a")
	for request, want := range map[string]string{"w": "w", "h": "", "r": ""} {
		if got := ask(dial(t, path), request); got != want {
			t.Errorf("%q: %q, want %q", request, got, want)
		}
	}
	unread := dial(t, path)
	go func() {
		for {
			if _, err := unread.Write(make([]byte, 1<<16)); err != nil {
				return
			}
		}
	}()
	for {
		if _, n := d.Status(); n <= 2 { // the idle one, and that which waited
			break
		}
		runtime.Gosched()
	}
	if got := ask(idle, "a"); got != "a" {
		t.Errorf("without a limit for idleness: %q", got)
	}
	if err := d.Configure([]listen.Address{address(t, "unix:"+path)}, Limits{Connections: 10, Idle: limit}, nil); err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	if _, err := idle.Read(b[:]); !errors.Is(err, io.EOF) {
		t.Errorf("an idle connection: %v", err)
	}
}

// fakeConn is a connection of which only the closing is of interest.
type fakeConn struct {
	net.Conn
	closed bool
}

func (c *fakeConn) Close() error { c.closed = true; return nil }

func TestEnforce(t *testing.T) {
	limits := &Limits{Idle: 40 * time.Second, Request: 10 * time.Second, Answer: 5 * time.Second, Write: 20 * time.Second}
	for _, tt := range []struct {
		phase                 Phase
		after                 time.Duration
		late, cancelled, shut bool
	}{
		{Waiting, 40 * time.Second, false, false, false},
		{Waiting, 40*time.Second + 1, true, false, true},
		{Reading, 10*time.Second + 1, true, false, true},
		{Answering, 5 * time.Second, false, false, false},
		{Answering, 5*time.Second + 1, true, true, false},
		{Answering, 10 * time.Second, true, true, false},
		{Answering, 10*time.Second + 1, true, false, true},
		{Writing, 20*time.Second + 1, true, false, true},
	} {
		synctest.Test(t, func(t *testing.T) {
			nc := &fakeConn{}
			c := &Conn{Conn: nc}
			c.ctx, c.cancel = context.WithCancel(t.Context())
			defer c.cancel()
			c.Enter(tt.phase, time.Now())
			c.enforce(limits, time.Now().Add(tt.after))
			if c.Late() != tt.late || (c.Context().Err() != nil) != tt.cancelled || nc.closed != tt.shut || c.Phase() != tt.phase {
				t.Errorf("phase %d after %v: late %v, cancelled %v, closed %v", tt.phase, tt.after, c.Late(), c.Context().Err() != nil, nc.closed)
			}
			c.enforce(&Limits{}, time.Now().Add(time.Hour))
			if c.Late() != tt.late {
				t.Error("a limit of 0 is none")
			}
		})
	}
}

func TestStop(t *testing.T) {
	for _, reconnects := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "s")
		d := newDoor(t, reconnects)
		if err := d.Configure([]listen.Address{address(t, "unix:"+path)}, Limits{Connections: 10}, nil); err != nil {
			t.Fatal(err)
		}
		idle, hung := dial(t, path), dial(t, path)
		ask(idle, "a")
		if _, err := hung.Write([]byte("w")); err != nil {
			t.Fatal(err)
		}
		for !busy(d) {
			runtime.Gosched()
		}
		ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
		defer cancel()
		if err := d.Stop(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("with work under way: %v", err)
		}
		var b [1]byte
		for _, c := range []net.Conn{idle, hung} {
			if _, err := c.Read(b[:]); err == nil && b[0] != '!' {
				t.Errorf("still open: %q", b)
			}
		}
		if _, n := d.Status(); n != 0 {
			t.Errorf("%d connections are left", n)
		}
	}
}

// busy reports whether a request is being worked on.
func busy(d *Door) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for c := range d.conns {
		if c.Phase() == Answering {
			return true
		}
	}
	return false
}
