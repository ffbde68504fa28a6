// Thread teams whose caller never waits for a thread that has not come.

#ifndef SYMRNN_THREADS_H
#define SYMRNN_THREADS_H

namespace symrnn {

constexpr int MAX_THREADS = 64;

struct Crew;  // the helper threads of one team, which go on living after it

// The calling thread, and helpers that join where the system runs them.
//
// `each` runs a phase: work(share) for each share, and returns when all are done. A share is claimed
// by the first thread that gets to it. The caller claims what no helper has claimed, and so waits only
// for shares that a helper is at work on; a helper that comes late finds nothing left. Thread i begins
// with share i, so that a share's weights tend to stay in one core's cache from phase to phase.
//
// Helpers are started when a team first wants them, and are there for later teams of any thread. They
// spin for some microseconds after a phase, then sleep. Where there are none (another team has them
// all, or the system refuses) the caller runs all shares.
class Team {
  public:
    // threads: at most so many, the caller included.
    explicit Team(int threads);
    ~Team();
    Team(const Team &) = delete;

    template <typename Work>
    void each(int shares, const Work &work) {
        if (!crew_ || shares == 1) {
            for (int share = 0; share < shares; ++share) work(share);
            return;
        }
        run(shares, [](const void *of, int share) { (*static_cast<const Work *>(of))(share); }, &work);
    }

  private:
    using Function = void (*)(const void *work, int share);
    void run(int shares, Function function, const void *work);

    Crew *crew_ = nullptr;  // null: the caller is alone
    int threads_;
};

}  // namespace symrnn

#endif
