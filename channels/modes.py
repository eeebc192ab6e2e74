"""The two modes of a network, training and evaluation, in one graph.

merge_modes(trained, graph)       # both of trace.py; now `graph` is that of both modes
in_mode(graph, training=False)    # that of one
"""

from torch import fx

from channels.traits import give, traits_of


def by_mode(training, trained, evaluated):
    """What a network gives that computes other operations in training than in evaluation, such as
    auxiliary heads: the last operation of its graph, which has those of both."""
    return trained if training else evaluated


def in_mode(graph: fx.Graph, training: bool) -> fx.Graph:
    """A copy of a graph with the operations of one mode alone."""
    alone = fx.Graph()
    alone.output(alone.graph_copy(graph, {}))
    end = next(reversed(alone.nodes))
    (choice,) = end.args
    if not isinstance(choice, fx.Node) or choice.target is not by_mode:
        return alone
    other = "evaluation" if training else "training"
    read = {node for node in alone.nodes if node.users}
    _, trained, evaluated = choice.args
    end.args = (by_mode(training, trained, evaluated),)
    for node in reversed(list(alone.nodes)):
        is_needed = node.op in ("placeholder", "output") or node.users
        if not is_needed and (node in read or traits_of(node).mode == other):
            alone.erase_node(node)
    return alone


def modes_of(graph: fx.Graph) -> tuple[bool, ...]:
    """The modes in which a graph computes different operations: (False,), or (False, True) where
    training has others."""
    has_both = graph.find_nodes(op="call_function", target=by_mode)
    return (False, True) if has_both else (False,)


def ends_of(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that only hand out what a network gives: its output, and what puts that into a dict
    or another object."""
    ends = [next(reversed(graph.nodes))]
    for end in ends:  # which grows meanwhile
        for source in end.all_input_nodes:
            if source.target is by_mode or isinstance(source.target, type):
                ends.append(source)
    return ends


def merge_modes(trained, graph):
    """Let the graph of evaluation compute in training what that of training does.

    Operations that both have stand in it once. Where what they give differs, its end is `by_mode`.
    """
    twins = {}  # node of training -> node of this graph that stands for it
    rest = list(trained.nodes)  # those that have no twin yet
    end = next(reversed(graph.nodes))
    for ours in list(graph.nodes):
        place = _place_of_twin(rest, ours, twins)
        if place is not None:
            _copy_before(ours, rest[:place], twins)
            _compute_both(ours, rest[place], twins)
            del rest[: place + 1]
        elif ours is not end:
            give(ours, mode="evaluation")
        else:
            _copy_before(end, rest[:-1], twins)
            result = fx.map_arg(rest[-1].args[0], twins.get)
            with graph.inserting_before(end):
                training = graph.get_attr("training")
                end.args = (graph.call_function(by_mode, (training, result, end.args[0])),)


def _place_of_twin(nodes, ours, twins):
    """Where the first node of training stands in a list that computes what `ours` does; or None."""
    for place, theirs in enumerate(nodes):
        if _are_twins(theirs, ours, twins):
            return place
    return None


def _compute_both(ours, theirs, twins):
    """Let a node compute in training what its twin does."""
    twins[theirs] = ours
    trained = fx.map_arg((theirs.args, theirs.kwargs), twins.get)
    evaluated = ours.args, ours.kwargs
    if trained != evaluated:
        ours.args, ours.kwargs = _either(ours, trained, evaluated)


def _copy_before(place, nodes, twins):
    """Copy operations that only training has to a place in the graph."""
    for node in nodes:
        with place.graph.inserting_before(place):
            twins[node] = place.graph.node_copy(node, twins.get)
        give(twins[node], mode="training")


def _are_twins(theirs, ours, twins):
    """Whether a node of training computes what a node of evaluation does."""
    if (theirs.op, theirs.target) != (ours.op, ours.target):
        return False
    wanted = fx.map_arg((theirs.args, theirs.kwargs), twins.get)
    return _differ_in_mode_alone(wanted, (ours.args, ours.kwargs))


def _differ_in_mode_alone(trained, evaluated):
    """Whether arguments are the same, but for what is True in training and False in evaluation."""
    if _are_alike(trained, evaluated, (tuple, list)) and len(trained) == len(evaluated):
        return all(map(_differ_in_mode_alone, trained, evaluated))
    if _are_alike(trained, evaluated, dict) and trained.keys() == evaluated.keys():
        return all(_differ_in_mode_alone(trained[key], evaluated[key]) for key in trained)
    return trained == evaluated or (trained is True and evaluated is False)


def _either(node, trained, evaluated):
    """Arguments of a node, in which what is True in training and False in evaluation becomes
    model.training."""
    if _are_alike(trained, evaluated, (tuple, list)):
        parts = [_either(node, *pair) for pair in zip(trained, evaluated)]
        return type(trained)(parts)
    if _are_alike(trained, evaluated, dict):
        return {key: _either(node, trained[key], evaluated[key]) for key in trained}
    if trained is True and evaluated is False:
        with node.graph.inserting_before(node):
            return node.graph.get_attr("training")
    return evaluated


def _are_alike(first, second, kinds):
    return isinstance(first, kinds) and isinstance(second, kinds)
