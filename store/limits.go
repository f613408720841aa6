package store

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Limits of both engines, chosen so that a record that fits in a file also fits
// in an etcd cluster with its default settings (128 operations and 1.5 MiB per
// request, less the room its own framing needs).
const (
	MaxKey   = 1024             // bytes of a key
	MaxValue = 1 << 20          // bytes of one value
	MaxOps   = 100              // operations of one transaction
	MaxTxn   = 1<<20 + 256<<10  // bytes of all keys and values of one transaction
	reserved = "/recast/.store" // keys of the engines themselves
)

// ErrClosed: the store was closed.
var ErrClosed = errors.New("the store is closed")

// checkOps refuses what one of the engines could not take.
func checkOps(ops []Op) error {
	if len(ops) > MaxOps {
		return fmt.Errorf("commit %d operations: at most %d fit in one transaction: split it", len(ops), MaxOps)
	}
	size := 0
	seen := make(map[string]bool, len(ops))
	for _, op := range ops {
		switch {
		case op.Key == "" || len(op.Key) > MaxKey:
			return fmt.Errorf("commit key %.40q: a key has 1 to %d bytes", op.Key, MaxKey)
		case strings.ContainsRune(op.Key, 0):
			return fmt.Errorf("commit key %q: a key has no NUL byte", op.Key)
		case !utf8.ValidString(op.Key):
			return fmt.Errorf("commit key %q: a key is UTF-8", op.Key)
		case isReserved(op.Key):
			return fmt.Errorf("commit key %q: keys under %q belong to the store", op.Key, reserved)
		case len(op.Value) > MaxValue:
			return fmt.Errorf("commit key %q: the value has %d bytes, at most %d fit", op.Key, len(op.Value), MaxValue)
		case seen[op.Key]:
			return fmt.Errorf("commit key %q: it is twice in one transaction", op.Key)
		case op.If < Any:
			return fmt.Errorf("commit key %q: condition %d is no revision", op.Key, op.If)
		case op.Lease != 0 && (op.Value == nil || op.Check):
			return fmt.Errorf("commit key %q: only a put takes a lease", op.Key)
		}
		seen[op.Key] = true
		size += len(op.Key) + len(op.Value)
	}
	if size > MaxTxn {
		return fmt.Errorf("commit %d bytes: at most %d fit in one transaction: split it", size, MaxTxn)
	}
	return nil
}

func isReserved(key string) bool {
	return key == reserved || strings.HasPrefix(key, reserved+"/")
}
