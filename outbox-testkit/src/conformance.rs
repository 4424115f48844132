//! Every case as a named test.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::time::timeout;

use crate::Harness;

/// A case that takes longer than this hangs, and fails.
const LONGEST: Duration = Duration::from_secs(300);

type Run<H> = for<'a> fn(&'a H) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

/// One case, to be run on the harness `H`.
pub struct Case<H> {
    name: &'static str,
    run: Run<H>,
}

impl<H: Harness> Case<H> {
    #[doc(hidden)]
    pub fn new(name: &'static str, run: Run<H>) -> Self {
        Self { name, run }
    }

    /// Module and name, for example `recovery::expired_lease_is_reclaimed`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Runs the case on a new harness, on a runtime of its own.
    ///
    /// # Panics
    /// When the rule is broken, and when the backend cannot be tested although `OUTBOX_TEST_REQUIRE` names it.
    pub fn run(&self) {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.expect("a tokio runtime").block_on(async {
            match H::start().await {
                Err(skip) => skip.report(H::NAME, self.name),
                Ok(harness) => self.run_on(harness).await,
            }
        });
    }

    async fn run_on(&self, harness: H) {
        let ended = timeout(LONGEST, (self.run)(&harness)).await;
        assert!(ended.is_ok(), "{} did not end within {LONGEST:?}", self.name);
        harness.finish().await;
    }
}

impl<H> fmt::Debug for Case<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// Makes a test of every case, for the parts of the contract that a backend has:
/// `conformance!(MyHarness: repository, operations, processed);`
///
/// * `repository` needs [`Harness`](crate::Harness),
/// * `operations` needs [`OperationsHarness`](crate::OperationsHarness) as well,
/// * `fair` needs [`DeclaredHarness`](crate::DeclaredHarness) as well,
/// * `ordered` needs [`DeclaredHarness`](crate::DeclaredHarness) as well,
/// * `processed` needs [`ProcessedHarness`](crate::ProcessedHarness) as well,
/// * `inspect` needs a repository that is [`Inspect`](outbox_core::Inspect).
///
/// The tests stand in modules beside the macro (`recovery::expired_lease_is_reclaimed`), so use it once in a
/// module. Each test makes a tokio runtime of its own; the crate that uses the macro needs none.
#[macro_export]
macro_rules! conformance {
    ($harness:ty: $($part:ident),+ $(,)?) => {
        $( $crate::__cases!($part => __tests, $harness); )+
    };
}

/// The cases of a part of the contract, to be run by hand: `cases!(MyHarness: repository)` is a
/// `Vec<Case<MyHarness>>`. Takes the parts of [`conformance!`](crate::conformance!).
#[macro_export]
macro_rules! cases {
    ($harness:ty: $($part:ident),+ $(,)?) => {{
        let mut cases = ::std::vec::Vec::<$crate::Case<$harness>>::new();
        $( cases.extend($crate::__cases!($part => __list, $harness)); )+
        cases
    }};
}

#[doc(hidden)]
#[macro_export]
macro_rules! __tests {
    ($harness:ty, $($module:ident: $($case:ident)+;)+) => {
        $(
            mod $module {
                #[allow(unused_imports, reason = "the harness may be named by a path")]
                use super::*;
                $(
                    #[test]
                    fn $case() {
                        $crate::__case!($harness, $module, $case).run();
                    }
                )+
            }
        )+
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __list {
    ($harness:ty, $($module:ident: $($case:ident)+;)+) => {
        [$( $( $crate::__case!($harness, $module, $case), )+ )+]
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __names {
    ($harness:ty, $($module:ident: $($case:ident)+;)+) => {
        [$( $( ::std::concat!(::std::stringify!($module), "::", ::std::stringify!($case)), )+ )+]
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __case {
    ($harness:ty, $module:ident, $case:ident) => {
        $crate::Case::<$harness>::new(
            ::std::concat!(::std::stringify!($module), "::", ::std::stringify!($case)),
            |harness| ::std::boxed::Box::pin($crate::cases::$module::$case(harness)),
        )
    };
}

/// The names of all cases, whatever a backend can do.
pub fn case_names() -> Vec<&'static str> {
    macro_rules! names {
        ($($part:ident)+) => { [$( &crate::__cases!($part => __names, ())[..] ),+].concat() };
    }
    names!(repository operations inspect fair ordered processed)
}

/// The list of all cases; it stands here and nowhere else.
#[doc(hidden)]
#[macro_export]
macro_rules! __cases {
    (repository => $callback:ident, $harness:ty) => {
        $crate::$callback! { $harness,
            enqueue:
                committed_message_is_delivered
                ids_come_back_in_the_order_of_the_drafts
                nothing_to_enqueue_is_fine
                five_thousand_messages_in_one_call
                payload_is_byte_exact
                headers_are_exact
                keys_are_exact
                empty_key_is_not_no_key
                topics_are_data
                trace_headers_travel_with_the_message
                repeated_id_is_reported_and_the_rest_is_stored
                id_repeated_in_one_transaction_is_reported
                id_of_a_claimed_message_is_taken
                id_is_free_again_after_delivery
                concurrent_repeat_of_an_id_is_stored_once
                delayed_message_waits_for_its_delay
                longest_delay_is_kept
                created_at_is_when_it_was_enqueued;
            dedup:
                repeat_in_one_call_is_stored_once
                repeat_in_one_transaction_is_stored_once
                repeat_in_another_transaction_is_stored_once
                transaction_goes_on_after_a_repeat
                mixed_call_says_which_were_there
                different_keys_do_not_collide
                tables_have_keys_of_their_own
                key_outlives_its_message
                key_of_a_dead_letter_is_taken
                expired_key_is_new
                rolled_back_key_is_free
                retry_with_the_same_id_is_there_already
                repeated_id_is_reported_with_a_key_too
                concurrent_repeat_waits_for_the_first
                concurrent_repeat_is_first_after_a_rollback
                opposite_orders_do_not_deadlock
                many_writers_of_one_key_agree
                five_thousand_keys_in_one_call
                impossible_key_is_refused;
            transaction:
                rolled_back_message_never_exists
                dropped_transaction_rolls_back
                open_transaction_is_not_visible
                calls_of_one_transaction_commit_together
                context_without_a_transaction_is_refused
                foreign_transaction_is_refused
                escaped_context_rolls_back
                failing_closure_rolls_back
                finished_closure_commits
                cancelled_closure_rolls_back
                open_transaction_blocks_no_delivery;
            input:
                empty_topic_is_refused
                control_character_in_a_topic_is_refused
                long_topic_is_refused
                nul_in_a_key_is_refused
                long_key_is_refused
                oversized_payload_is_refused
                nil_id_is_refused
                endless_delay_is_refused
                control_character_in_a_header_is_refused
                large_headers_are_refused
                too_many_headers_are_refused
                id_named_twice_in_one_call_is_refused
                claim_limit_out_of_bounds_is_refused
                lease_out_of_bounds_is_refused
                zero_attempts_are_refused
                impossible_topics_are_refused
                highest_attempt_limit_is_legal
                endless_retry_delay_refuses_the_call
                extension_out_of_bounds_is_refused;
            claim:
                empty_table_gives_an_empty_claim
                messages_come_in_the_order_of_enqueueing
                claims_are_disjoint
                limit_is_never_exceeded
                byte_limit_is_never_exceeded
                first_message_passes_the_byte_limit
                only_named_topics_are_claimed
                unserved_topic_blocks_nobody
                attempt_is_counted_by_the_claim
                token_is_fresh_for_every_claim
                fence_rises_with_every_claim
                running_lease_excludes_others
                lease_is_as_long_as_asked_for
                delayed_messages_come_in_the_order_of_their_due_times
                retried_message_comes_as_a_new_arrival
                released_message_comes_as_a_new_arrival
                empty_claim_says_when_the_next_message_is_due
                empty_claim_says_when_the_next_lease_expires
                timer_is_never_late_for_the_claimed_topics
                undecodable_row_is_dead_and_the_rest_goes_on
                concurrent_claimers_are_disjoint;
            recovery:
                expired_lease_is_reclaimed
                claim_without_recovery_leaves_expired_leases_alone
                recovered_messages_come_apart_from_fresh_ones
                groups_shrink_towards_the_last_attempt
                group_has_one_count_of_attempts
                limits_hold_for_recovered_messages
                topics_hold_for_recovered_messages
                message_lost_in_its_last_attempt_is_dead
                limit_is_the_number_of_attempts
                lowered_limit_applies_to_waiting_messages
                claim_that_only_buries_is_not_empty
                messages_out_of_attempts_block_nobody
                poison_message_does_not_kill_its_neighbours
                settled_message_is_no_longer_recovered;
            claimer:
                everything_is_delivered
                late_commit_is_delivered
                commits_in_any_order_are_delivered
                rolled_back_transaction_hides_nothing
                other_topics_are_found_later
                large_messages_are_found_later
                renewed_messages_are_found
                expired_lease_is_found_in_time
                cancelled_claim_hides_nothing
                two_loops_share_the_table
                shared_claimer_is_correct;
            settle:
                done_message_is_gone
                retry_waits_for_its_delay
                retry_without_delay_is_due_at_once
                dead_letter_is_never_handed_out
                release_gives_the_attempt_back
                stale_token_changes_nothing
                late_settlement_applies_until_the_next_claim
                second_settlement_is_reported
                unknown_lease_is_reported
                unclaimed_message_cannot_be_settled
                lost_lease_touches_no_other
                one_failure_touches_no_other
                stale_lease_beside_the_current_one_is_lost
                stale_lease_borrows_no_token
                lease_named_twice_counts_once
                call_may_mix_claims_and_outcomes
                nothing_to_settle_is_fine
                large_call_settles_every_message
                any_error_text_is_taken
                settling_and_extending_at_once_is_sound
                cancelled_settlement_loses_nothing;
            extend:
                extended_lease_lasts
                extension_counts_from_now
                late_extension_applies_until_the_next_claim
                lost_lease_is_not_extended
                lost_lease_touches_no_other
                stale_lease_beside_the_current_one_is_lost
                lease_named_twice_is_extended
                extension_is_no_attempt;
            wakeup:
                storage_says_whether_it_gives_hints
                commit_gives_a_hint
                listener_can_sleep_again
                hint_is_not_lost
                release_gives_a_hint;
        }
    };
    (operations => $callback:ident, $harness:ty) => {
        $crate::$callback! { $harness,
            operations:
                ping_and_check_pass
                empty_table_has_no_statistics
                stats_count_every_message_once
                stats_stand_under_their_topics
                stats_say_how_long_the_oldest_waits
                dead_letter_shows_message_and_error
                error_text_is_cut_and_cleaned
                lost_message_says_in_which_attempt
                lowered_limit_is_the_reason
                undecodable_row_is_a_dead_letter
                dead_letters_page_through_everything
                dead_letters_are_filtered_by_topic
                page_size_out_of_bounds_is_refused
                redriven_message_has_all_attempts
                redriven_message_comes_as_a_new_arrival
                redrive_keeps_the_fence
                only_dead_letters_are_redriven
                only_dead_letters_are_discarded
                discarded_message_is_gone
                id_of_a_dead_letter_is_taken
                many_dead_letters_move_in_one_call
                stats_tell_retries_from_delays
                oldest_due_counts_from_when_it_became_due
                diagnosis_says_why_messages_wait
                dead_letters_are_filtered_by_key
                dead_letters_are_filtered_by_error
                dead_letters_are_filtered_by_age
                conditions_of_a_filter_add_up
                impossible_filter_is_refused
                matching_dead_letters_are_redriven
                matching_dead_letters_are_discarded
                bulk_operations_are_bounded
                concurrent_bulk_redrives_move_each_letter_once
                history_tells_what_failed
                history_tells_a_crash_from_a_failure
                history_survives_a_redrive
                history_is_bounded
                history_of_the_unknown_is_empty
                doctor_finds_nothing_critical_in_a_healthy_storage;
            retention:
                kept_message_is_never_handed_out
                id_of_a_kept_message_is_taken
                stale_lease_of_a_kept_message_is_lost
                call_may_mix_kept_messages_and_others
                kept_message_is_pruned_by_the_time_it_ended
                nothing_unfinished_is_pruned
                dead_letters_have_a_policy_of_their_own
                prune_is_bounded
                dry_run_removes_nothing
                prune_out_of_bounds_is_refused
                only_expired_keys_are_pruned
                pruned_key_is_new
                key_of_a_discarded_message_is_taken;
        }
    };
    (inspect => $callback:ident, $harness:ty) => {
        $crate::$callback! { $harness,
            inspect:
                waiting_messages_come_in_the_order_of_enqueueing
                delay_is_shown
                claimed_and_retried_messages_wait_still
                finished_messages_do_not_wait
                transaction_sees_its_own_messages
                last_messages_are_shown
                listing_claims_nothing
                impossible_limit_is_refused
                foreign_transaction_is_refused;
        }
    };
    (fair => $callback:ident, $harness:ty) => {
        $crate::$callback! { $harness,
            fair:
                quiet_key_is_claimed_within_two_batches
                tenants_take_turns
                messages_without_a_key_take_turns_as_one
                topics_of_a_key_take_turns
                claim_is_divided_evenly
                claims_of_one_message_take_turns
                messages_of_a_claim_come_in_the_order_of_arrival
                key_keeps_its_order_of_arrival
                claimed_messages_take_no_turns
                returning_messages_take_turns
                unserved_topic_has_no_turn
                byte_limit_cuts_the_rounds
                messages_out_of_attempts_keep_nobody_waiting
                several_loops_share_fairly;
        }
    };
    (ordered => $callback:ident, $harness:ty) => {
        $crate::$callback! { $harness,
            ordered:
                claim_says_that_it_is_ordered
                claimed_message_holds_those_behind_it
                run_of_a_key_comes_in_order
                keys_run_side_by_side
                messages_without_a_key_hold_nobody
                claims_of_one_message_find_everything
                retried_message_keeps_its_place
                released_rest_of_a_run_keeps_its_place
                released_message_keeps_its_place
                released_message_without_a_key_is_a_new_arrival
                delayed_message_holds_those_behind_it
                unserved_topic_holds_its_key
                byte_limit_keeps_the_order
                expired_lease_holds_those_behind_it
                lost_run_is_recovered_in_order
                lost_rest_of_a_run_waits_for_its_turn
                dead_letter_lets_its_key_go_on
                redriven_message_comes_last
                dead_letter_blocks_its_key
                discarding_the_head_unblocks_its_key
                redriving_the_head_keeps_its_place
                message_out_of_attempts_blocks_its_run
                undecodable_row_follows_the_policy
                backlog_of_a_key_hides_no_other
                loop_reaches_every_key
                blocked_keys_say_what_holds_them
                free_keys_are_not_listed
                blocked_keys_come_in_pages
                long_backlog_is_an_estimate
                skipped_head_lets_its_key_go_on
                released_head_comes_first
                message_behind_another_is_no_head
                unblocked_key_gives_a_hint
                dead_letter_that_holds_nobody_is_no_head
                blocked_keys_need_order
                order_and_turns_by_header_are_refused
                order_survives_any_interleaving;
        }
    };
    (processed => $callback:ident, $harness:ty) => {
        $crate::$callback! { $harness,
            processed:
                second_mark_is_a_duplicate
                groups_are_independent
                rolled_back_mark_is_forgotten
                transaction_goes_on_after_a_duplicate
                mark_and_message_share_a_transaction
                open_mark_is_not_processed_yet
                concurrent_duplicate_waits_for_the_first
                concurrent_duplicate_becomes_first_after_a_rollback
                concurrent_consumers_process_once
                record_of_the_first_comes_back
                metadata_at_its_bounds_is_stored
                stored_result_comes_back
                rolled_back_result_is_forgotten
                processed_at_is_the_time_of_the_mark
                purge_keeps_the_young
                purge_is_of_one_group
                purge_is_bounded
                context_without_a_transaction_is_refused
                impossible_group_is_refused
                nil_id_is_refused
                impossible_fingerprint_is_refused
                impossible_metadata_is_refused
                impossible_result_is_refused;
        }
    };
}
