package testenv

import (
	"context"
	"time"

	"github.com/bougou/go-ipmi/pkg/handlers"
	"github.com/bougou/go-ipmi/pkg/types"
)

// ipmiAway is how long a BMC is not there when it resets. Real ones take a
// minute or two.
const ipmiAway = 500 * time.Millisecond

// registerReset takes Cold Reset and Warm Reset for what they are, resets of the
// BMC (20.2): go-ipmi hands them to the machine.
func (b *IPMIBMC) registerReset(r *handlers.Registry) {
	reset := func(_ context.Context, h *handlers.HandlerContext, _ []byte) ([]byte, types.CompletionCode, error) {
		if h.Session == nil {
			return nil, types.CodeNotSupported, nil
		}
		if !b.now().IgnoreRestart {
			b.conn.next(h.Session, ipmiAfter{then: b.Restart})
		}
		return nil, types.CodeOK, nil
	}
	r.RegisterFunc(types.CommandColdReset, reset)
	r.RegisterFunc(types.CommandWarmReset, reset)
}

// Restart makes the BMC forget its sessions, its lock and what else is volatile,
// and go away for the time of BMCFaults.Away. Accounts and the event log
// stay, and the machine does not notice.
func (b *IPMIBMC) Restart() {
	faults := b.now()
	away := faults.Away
	if away == 0 {
		away = ipmiAway
	}
	b.conn.leave(away)
	b.forget()
	if faults.ForgetBoot {
		b.clearBoot()
	}
	b.sel.cancel()
	b.options.reset()
	b.bmc.SOL.Config().ResetVolatile()
}
