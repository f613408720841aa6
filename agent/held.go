package agent

import (
	"context"
	"errors"
	"time"
)

// held is an address that DHCP gave for a time. A machine may stay in the ramdisk for
// days, undeclared and waiting, and the server gives an address whose time is over to
// the next one.
type held struct {
	life  time.Duration // 0: for ever
	renew func(context.Context) (held, error)
}

// errRefused: the server gives the address to somebody else now.
var errRefused = errors.New("the server takes the address back")

// keep renews at half of the address's time, then every eighth of it; an address that
// is refused, or over, is asked for anew, with whatever the server gives. It ends with
// the context.
func (h held) keep(ctx context.Context, sleep func(context.Context, time.Duration) error, ask func(context.Context) (held, error), log func(string, ...any)) {
	wait, left := h.life/2, h.life
	for h.life > 0 {
		if sleep(ctx, max(wait, time.Second)) != nil {
			return
		}
		left -= wait
		next, err := h.renew(ctx)
		if errors.Is(err, errRefused) || err != nil && left <= 0 {
			log("the address is asked for anew: %v", err)
			next, err = ask(ctx)
		}
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			log("the address is not renewed: %v", err)
			wait = h.life / 8
		default:
			h, wait, left = next, next.life/2, next.life
		}
	}
}
