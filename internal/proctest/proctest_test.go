package proctest

import (
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

func TestStates(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	for range 20 {
		Freeze(t, pid)
		if s, err := states(pid); err != nil || strings.Trim(string(s), "Tt") != "" {
			t.Fatalf("frozen: %s, %v", s, err)
		}
		Thaw(t, pid)
		if s, err := states(pid); err != nil || strings.ContainsAny(string(s), "Tt") {
			t.Fatalf("thawed: %s, %v", s, err)
		}
	}
	Signal(t, pid, syscall.SIGKILL)
	Gone(t, pid)   // nobody has waited for it yet
	_ = cmd.Wait() // killed
	Gone(t, pid)
}
