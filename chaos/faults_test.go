package chaos

import (
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"postern/internal/dnstest"
	"postern/internal/proctest"
)

// faults are all of them, in the order of the table.
var faults = []fault{
	{
		name: "Redis killed", what: theStore, redis: true, postfix: true,
		begin: func(w *world) { w.redis.kill() },
		end:   func(w *world) { w.redis.start(); w.redis.ready() },
	},
	{
		name: "Redis hung (SIGSTOP)", what: theStore, redis: true, postfix: true,
		begin: func(w *world) { proctest.Freeze(w.t, w.redis.pid()) },
		end:   func(w *world) { proctest.Thaw(w.t, w.redis.pid()) },
	},
	{
		name: "Redis slow (three times store.redis.timeout)", what: theStore, redis: true, proxied: true,
		begin: func(w *world) { w.proxy.delay.Store(int64(3 * redisTimeout())) },
		end:   func(w *world) { w.proxy.delay.Store(0) },
	},
	{
		name: "Redis slow (half of store.redis.timeout)", what: theStore, redis: true, proxied: true,
		begin: func(w *world) { w.proxy.delay.Store(int64(redisTimeout() / 2)) },
		end:   func(w *world) { w.proxy.delay.Store(0) },
	},
	{
		name: "connections to Redis cut again and again", what: theStore, redis: true, proxied: true,
		during: func(w *world) { time.Sleep(50 * time.Millisecond); w.proxy.cutAll() },
	},
	{
		name: "Redis answers garbage", what: theStore, redis: true, proxied: true,
		begin: func(w *world) { w.proxy.swap.Store("\x00\xff<html>\r\n*-7\r\n$99999999999\r\n") },
		end:   func(w *world) { w.proxy.swap.Store(""); w.proxy.cutAll() },
	},
	{
		name: "Redis loading", what: theStore, redis: true,
		begin: func(w *world) {
			w.redis.do("DEBUG", "POPULATE", fmt.Sprint(int(lasts()/time.Millisecond)))
			w.redis.do("BGREWRITEAOF")
			eventually(w.t, "the file is rewritten", func() bool {
				info := w.redis.do("INFO", "persistence")
				return strings.Contains(info, "aof_rewrite_in_progress:0") && strings.Contains(info, "aof_rewrite_scheduled:0")
			})
			w.redis.kill()
			w.redis.start("--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024")
			w.redis.says("-LOADING")
		},
		end: func(w *world) { w.redis.ready() },
	},
	{
		name: "Redis read-only (replica)", what: theStore, redis: true, postfix: true,
		begin: func(w *world) { w.redis.do("REPLICAOF", "127.0.0.1", "1"); w.redis.says("-READONLY") },
		end:   func(w *world) { w.redis.do("REPLICAOF", "NO", "ONE") },
	},
	{
		name: "Redis out of memory", what: theStore, redis: true, postfix: true,
		begin: func(w *world) { w.redis.do("CONFIG", "SET", "maxmemory", "1"); w.redis.says("-OOM") },
		end:   func(w *world) { w.redis.do("CONFIG", "SET", "maxmemory", "0") },
	},
	{
		name: "Redis unable to save (MISCONF)", what: theStore, redis: true,
		begin: func(w *world) {
			w.redis.do("CONFIG", "SET", "save", "3600 1")
			w.redis.forget()
			w.redis.do("BGSAVE")
			w.redis.says("-MISCONF")
		},
		end: func(w *world) {
			w.redis.do("CONFIG", "SET", "dir", w.redis.dir)
			w.redis.do("CONFIG", "SET", "save", "")
		},
	},
	{
		name: "Redis busy in a script", what: theStore, redis: true,
		begin: func(w *world) {
			if _, err := io.WriteString(w.redis.dial(), command("EVAL", "while true do end", "0")); err != nil {
				w.t.Error(err)
			}
			w.redis.says("-BUSY")
		},
		end: func(w *world) { w.redis.do("SCRIPT", "KILL"); w.redis.ready() },
	},
	{
		// Between two commands they may be gone again.
		name: "Redis emptied of its scripts, 100 times a second", what: theStore, redis: true, postfix: true,
		during: func(w *world) { w.redis.do("SCRIPT", "FLUSH"); time.Sleep(10 * time.Millisecond) },
	},
	{
		name: "Redis forbids scripts (NOPERM)", what: theStore, redis: true,
		begin: func(w *world) { w.redis.do("ACL", "SETUSER", "default", "-evalsha", "-eval", "-script") },
		end:   func(w *world) { w.redis.do("ACL", "SETUSER", "default", "+@all") },
	},
	{
		name: "Redis takes no more connections", what: theStore, redis: true,
		begin: func(w *world) {
			w.control = w.redis.dial()
			w.redis.over(w.control, "CONFIG", "SET", "maxclients", "1")
			w.redis.over(w.control, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
		},
		end: func(w *world) { w.redis.over(w.control, "CONFIG", "SET", "maxclients", "1000"); w.redis.ready() },
	},
	{
		name: "DNS servers dead", what: theDNS, postfix: true,
		begin: func(w *world) { w.dns.Stop() },
		end:   func(w *world) { w.dns.Restart() },
	},
	{
		name: "DNS answers nothing", what: theDNS, postfix: true,
		begin: func(w *world) { w.dns.BehaveUnder(".", dnstest.Drop) },
		end:   func(w *world) { w.dns.BehaveWell(".") },
	},
	{
		name: "DNS slow (400 ms)", what: theDNS,
		begin: func(w *world) { w.dns.BehaveUnder(".", dnstest.Behavior{Delay: 400 * time.Millisecond}) },
		end:   func(w *world) { w.dns.BehaveWell(".") },
	},
	{
		name: "DNS fails (SERVFAIL)", what: theDNS,
		begin: func(w *world) { w.dns.BehaveUnder(".", dnstest.ServFail) },
		end:   func(w *world) { w.dns.BehaveWell(".") },
	},
	{
		name: "DNS lies (another question)", what: theDNS,
		begin: func(w *world) { w.dns.BehaveUnder(".", dnstest.Behavior{Lies: []dnstest.Lie{dnstest.LieQuestion}}) },
		end:   func(w *world) { w.dns.BehaveWell(".") },
	},
	{
		name: "DNS lies first (wrong id, garbage)", postfix: true,
		begin: func(w *world) {
			w.dns.BehaveUnder(".", dnstest.Behavior{Lies: []dnstest.Lie{dnstest.LieID, dnstest.LieGarbage}, Truth: true})
		},
		end: func(w *world) { w.dns.BehaveWell(".") },
	},
	{
		name: "disk full", postfix: true,
		mount: func(w *world, dir string) { w.mount(dir, "-t", "tmpfs", "-o", "size=4m", "tmpfs") },
		begin: func(w *world) { w.fill(true) },
		end:   func(w *world) { w.fill(false) },
		after: remembers,
	},
	{
		name: "disk hangs (fsfreeze)", postfix: true,
		mount: (*world).ownDisk,
		begin: func(w *world) { w.freeze(true) },
		end:   func(w *world) { w.freeze(false) },
		after: remembers,
	},
	{
		name:  "disk slow (a second for each write)",
		mount: (*world).ownDisk,
		during: func(w *world) {
			w.freeze(true)
			time.Sleep(time.Second)
			w.freeze(false)
			time.Sleep(20 * time.Millisecond)
		},
		after: remembers,
	},
	{
		// As ext4 does by itself when the disk fails (errors=remount-ro). Until
		// somebody has repaired it nothing is kept.
		name: "disk fails and turns read-only", sockets: true,
		mount: (*world).ownDisk,
		begin: func(w *world) {
			w.cut()
			w.command("mount", "-o", "remount,abort", w.state())
		},
		end: func(w *world) {
			w.d.stop()
			w.cut() // what it has answered until its end is gone, too
			w.command("umount", w.state())
			w.fsck()
			w.command("mount", "-o", "loop", filepath.Join(w.dir, "disk"), w.state())
			w.d.start()
		},
	},
	{
		name: "file descriptors exhausted", what: theDNS, files: 60,
		begin: func(w *world) { w.crowd(200) },
		end:   func(w *world) { w.uncrowd() },
	},
	{
		name: "memory limit (GOMEMLIMIT) under a flood of triplets", env: []string{"GOMEMLIMIT=40MiB"},
		during: func(w *world) { w.flood(50 * time.Millisecond) },
	},
	{
		name: "configuration reloaded ten times a second", postfix: true,
		during: func(w *world) {
			n := serial.Add(1)
			w.d.configure(strings.Replace(w.d.text, "inline:203.0.113.0/24", fmt.Sprintf("inline:203.0.113.0/24 10.1.%d.%d", n>>8&255, n&255), 1))
			if n%2 == 0 {
				proctest.Signal(w.t, w.d.pid(), syscall.SIGHUP)
			} else if _, err := w.d.call("POST", "/v1/reload"); err != nil {
				w.t.Error(err)
			}
			time.Sleep(100 * time.Millisecond)
		},
	},
	{
		name: "reloads of a faulty configuration", postfix: true,
		during: func(w *world) {
			w.d.configure(w.d.text + "\nno_such_key = 1\n")
			if _, err := w.d.call("POST", "/v1/reload"); err == nil {
				w.t.Error("a faulty configuration is taken")
			}
			time.Sleep(100 * time.Millisecond)
		},
		end: func(w *world) { w.d.configure(w.d.text) },
	},
	{
		name: "daemon stopped and started (SIGTERM)", sockets: true, postfix: true,
		during: func(w *world) {
			w.d.stop()
			w.d.start()
			time.Sleep(300 * time.Millisecond)
		},
	},
	{
		name: "daemon killed (SIGKILL)", sockets: true, postfix: true,
		during: func(w *world) {
			w.d.kill()
			w.cut()                            // what it has answered until its end may be gone
			time.Sleep(500 * time.Millisecond) // RestartSec of the unit
			w.d.start()
			time.Sleep(4 * time.Second) // Postfix asks twice; a daemon that ends again meanwhile is no use
		},
	},
	{
		// What it had asked of the DNS is answered too late.
		name: "daemon hung (SIGSTOP)", what: theDNS, sockets: true,
		begin: func(w *world) { proctest.Freeze(w.t, w.d.pid()) },
		end:   func(w *world) { proctest.Thaw(w.t, w.d.pid()) },
	},
	{
		name: "daemon upgraded in place, and back", sockets: true, postfix: true,
		begin: func(w *world) {
			path, err := newBinary()
			if err != nil {
				w.t.Error(err)
				return
			}
			w.upgrade(path)
		},
		end: func(w *world) {
			path, _ := plainBinary() // it is there
			w.upgrade(path)
		},
	},
	{
		name: "clock stepped an hour ahead", clock: true, slow: true, postfix: true,
		begin: func(w *world) { w.step(time.Hour) },
	},
	{
		// Who waits begins to wait anew, and no longer than the delay.
		name: "clock stepped an hour back", clock: true, slow: true, postfix: true,
		begin: func(w *world) { w.step(-time.Hour); w.cut() },
	},
	{
		name: "clock stepped ahead and back again and again", clock: true, slow: true,
		during: func(w *world) {
			w.step(time.Minute)
			time.Sleep(200 * time.Millisecond)
			w.step(-time.Minute)
			w.cut()
			time.Sleep(200 * time.Millisecond)
		},
		end: func(w *world) { w.step(0); w.cut() },
	},
}
