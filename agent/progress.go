package agent

import (
	"sync/atomic"

	"recast/inventory"
)

// Progress is where a write is; reports read it while the write goes on.
type Progress struct {
	step                          atomic.Value // inventory.AgentStep
	done, total, fetched, written atomic.Int64
	erased                        atomic.Bool
}

func (p *Progress) begin(step inventory.AgentStep, total int64) {
	p.done.Store(0)
	p.total.Store(total)
	p.step.Store(step)
}

// fill copies the progress into a report.
func (p *Progress) fill(r *inventory.Report) {
	r.Step, _ = p.step.Load().(inventory.AgentStep)
	r.Done, r.Total = p.done.Load(), p.total.Load()
	r.Fetched, r.Written = p.fetched.Load(), p.written.Load()
	r.Erased = p.erased.Load()
}
