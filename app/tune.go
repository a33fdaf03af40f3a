package app

import (
	"os"
	"runtime/debug"
)

// Tune sets the garbage collector for a process whose live memory is small
// and whose requests are many: it runs half as often as by default, for a few
// dozen megabytes more. GOGC in the environment goes before it.
func Tune() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(200)
	}
}
