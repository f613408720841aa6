package testenv

import (
	"context"
	"fmt"
)

// BlockStats are the counters of one disk since the machine was made: bytes and
// requests as the machine sent them.
type BlockStats struct {
	ReadBytes  int64 `json:"rd_bytes"`
	WriteBytes int64 `json:"wr_bytes"`
	ReadOps    int64 `json:"rd_operations"`
	WriteOps   int64 `json:"wr_operations"`
	FlushOps   int64 `json:"flush_operations"`
}

func (s *BlockStats) add(o BlockStats) {
	s.ReadBytes += o.ReadBytes
	s.WriteBytes += o.WriteBytes
	s.ReadOps += o.ReadOps
	s.WriteOps += o.WriteOps
	s.FlushOps += o.FlushOps
}

// BlockStats has one entry per disk, in the order of Disks, over all starts.
func (m *QEMU) BlockStats(ctx context.Context) ([]BlockStats, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	sum := make([]BlockStats, len(m.Disks))
	copy(sum, m.past)
	if !m.on() {
		return sum, nil
	}
	now, err := m.stats(ctx, m.run)
	if err != nil {
		return nil, fmt.Errorf("count the requests of %q: %w", m.Name, err)
	}
	for i := range sum {
		sum[i].add(now[i])
	}
	return sum, nil
}

func (m *QEMU) stats(ctx context.Context, run *qemuRun) ([]BlockStats, error) {
	var devices []struct {
		Device string     `json:"device"`
		Stats  BlockStats `json:"stats"`
	}
	if err := run.qmp.execute(ctx, "query-blockstats", nil, &devices); err != nil {
		return nil, err
	}
	stats := make([]BlockStats, len(m.Disks))
	for i := range m.Disks {
		for _, d := range devices {
			if d.Device == qemuDriveID(i) {
				stats[i] = d.Stats
			}
		}
	}
	return stats, nil
}

// keepStats saves the counters of a run that is about to end.
func (m *QEMU) keepStats(ctx context.Context, run *qemuRun) {
	now, err := m.stats(ctx, run)
	if err != nil {
		m.logger().Warn("keep disk counters", "machine", m.Name, "error", err)
		return
	}
	if m.past == nil {
		m.past = make([]BlockStats, len(m.Disks))
	}
	for i := range m.past {
		m.past[i].add(now[i])
	}
}
